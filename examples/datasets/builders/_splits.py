"""What the builders share: a fixed split, and examples out of arrays."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from examples.datasets._split import stratified_split


def train_and_test(
    labels: NDArray[np.int64], test_size: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Splits a set that has no split of its own, always in the same way.

    Args:
        labels: Class of each example, from 0.
        test_size: Number of test examples, as equally many of each class as possible.

    Returns:
        The indices of the training examples (all that are left) and of the test examples.
    """
    (test,) = stratified_split(labels, (test_size,), seed=0)
    return np.setdiff1d(np.arange(len(labels)), test), test


def examples_of(chosen: NDArray[np.int64], **features: Any) -> Iterator[tuple[int, Any]]:
    """Yields key and example for each chosen index; the key is the index."""
    for index in chosen.tolist():
        yield index, {name: array[index] for name, array in features.items()}
