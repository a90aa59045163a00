"""A few examples of each class, always the same ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_transfer import _checks
from keras_transfer.data import _selection


def few_shot(
    dataset_or_arrays: Any,
    per_class: int,
    seed: int = 0,
    *,
    class_names: Sequence[str] | None = None,
) -> Any:
    """Keeps `per_class` examples of each class, the same for the same seed on any machine.

    The choice depends on `seed`, `per_class` and the order of the data alone: not on
    global seeds, library versions or hardware. It nests: with the same seed, the
    examples for a smaller `per_class` are among those for a larger one. Few-shot
    results vary by several points with the choice: report several seeds.

    Args:
        dataset_or_arrays: A `tf.data.Dataset` of (inputs, labels), batched or not, in
            a fixed order (not shuffled yet), or the arrays `(inputs, labels)`. A third
            entry, sample weights, is kept with its examples. Labels are whole numbers.
        per_class: Examples kept of each class. At least 1.
        seed: Which examples are chosen.
        class_names: Names of all classes in label order: a class without examples is
            then an error too, and messages use the names. `spec.class_names`.

    Returns:
        Data of the same form, in the order it had; a data set keeps its batch size,
        and holds the examples in memory (up to 1 GiB). Shuffle it for training.

    Raises:
        ValueError: If a class has fewer than `per_class` examples, or labels are
            outside the range of `class_names`, or the data set comes in another order
            when it is read again (`tf.errors.InvalidArgumentError`, where reading, if
            the examples stay out of memory).
        TypeError: If labels are not whole numbers.

    Example:

    >>> import numpy as np
    >>> from keras_transfer.data import few_shot
    >>> inputs, labels = np.arange(12), np.arange(12) % 3
    >>> few_shot((inputs, labels), per_class=2, seed=0)[1].tolist()
    [0, 2, 1, 0, 1, 2]
    """
    per_class = _checks.integer(per_class, "per_class", minimum=1)
    seed = _checks.integer(seed, "seed")
    source = _selection.read(dataset_or_arrays)
    labels = source.labels
    rank = _selection.ranks(labels.size, seed)
    chosen = []
    for label in _selection.checked_range(labels, class_names):
        positions = np.flatnonzero(labels == label)
        if positions.size < per_class:
            raise ValueError(
                f"Class {_selection.called(label, class_names)} has {positions.size} examples, "
                f"fewer than wanted. Received: per_class={per_class}. Lower it, or leave the "
                "class out of the data."
            )
        chosen.append(_selection.lowest(positions, per_class, rank))
    return _selection.keep(source, np.sort(np.concatenate(chosen)))
