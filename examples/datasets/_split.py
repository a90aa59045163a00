"""Splits that are the same for the same seed, with equally many examples of each class."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def stratified_split(
    labels: NDArray[Any], sizes: tuple[int, ...], seed: int
) -> list[NDArray[np.int64]]:
    """Draws disjoint sets of examples, each with the classes in equal numbers.

    Where a size is no multiple of the number of classes, classes drawn by the seed get one
    example more. A set's examples depend on the sizes that stand before it, not on those
    behind it.

    Args:
        labels: Class of each example, from 0.
        sizes: Number of examples of each set, first set first.
        seed: The same seed draws the same examples, in the same order.

    Returns:
        The indices of each set's examples, shuffled.

    Raises:
        ValueError: If a class has fewer examples than the sets together take of it.
    """
    generator = np.random.default_rng(seed)
    num_classes = int(labels.max()) + 1
    rest = [generator.permutation(np.flatnonzero(labels == c)) for c in range(num_classes)]
    sets = []
    for size in sizes:
        if size < 0:
            raise ValueError(f"A set's size must not be negative. Received: sizes={sizes}")
        taken = np.full(num_classes, size // num_classes)
        taken[generator.permutation(num_classes)[: size % num_classes]] += 1
        for c, number in enumerate(taken):
            if number > len(rest[c]):
                available = int((labels == c).sum())
                raise ValueError(
                    f"Class {c} has only {available} examples, too few for sets of "
                    f"sizes={sizes}. Ask for fewer."
                )
        sets.append(np.concatenate([rest[c][: taken[c]] for c in range(num_classes)]))
        rest = [rest[c][taken[c] :] for c in range(num_classes)]
        generator.shuffle(sets[-1])
    return sets
