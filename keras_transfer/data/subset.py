"""A share of a data set, always the same one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keras_transfer import _checks
from keras_transfer.data import _selection


def subset(
    dataset: Any,
    fraction: float,
    stratified: bool = True,
    seed: int = 0,
    *,
    class_names: Sequence[str] | None = None,
) -> Any:
    """Keeps a share of the examples, the same for the same seed on any machine.

    For the learning curve over the amount of data that shows where transfer pays. The
    choice depends on the arguments and the order of the data alone. It nests: with the
    same seed, a smaller fraction is part of a larger one.

    Args:
        dataset: A `tf.data.Dataset` of (inputs, labels), batched or not, in a fixed
            order (not shuffled yet), or the arrays `(inputs, labels)`. A third entry,
            sample weights, is kept with its examples. Labels are whole numbers.
        fraction: Share of the examples kept, in (0, 1].
        stratified: Whether every class keeps the same share (rounded to whole
            examples). `False` draws from all alike.
        seed: Which examples are chosen.
        class_names: Names of all classes in label order: a class without examples is
            then an error too, and messages use the names. `spec.class_names`.

    Returns:
        Data of the same form, in the order it had; a data set keeps its batch size,
        and holds the examples in memory up to 1 GiB. Above that, or where examples
        differ in shape, it reads all of `dataset` each time.

    Raises:
        ValueError: If `fraction` is out of range or so small that a class (or the
            whole) would be left without examples, or labels are outside the range of
            `class_names`, or the data set comes in another order when it is read
            again (`tf.errors.InvalidArgumentError`, where reading, if the examples stay
            out of memory).
        TypeError: If labels are not whole numbers.

    Example:

    >>> import numpy as np
    >>> from keras_transfer.data import subset
    >>> inputs, labels = np.arange(12), np.arange(12) % 3
    >>> subset((inputs, labels), fraction=0.5)[1].tolist()
    [0, 2, 1, 0, 1, 2]
    """
    fraction = _checks.number(fraction, "fraction", above=0, maximum=1)
    seed = _checks.integer(seed, "seed")
    if not isinstance(stratified, bool):
        raise TypeError(f"`stratified` must be True or False. Received: stratified={stratified!r}")
    source = _selection.read(dataset)
    labels = source.labels
    rank = _selection.ranks(labels.size, seed)
    if not stratified:
        _selection.checked_range(labels, class_names)
        wanted = round(fraction * labels.size)
        if wanted == 0:
            raise ValueError(
                "`fraction` leaves no example. "
                f"Received: fraction={fraction:g} of {labels.size} examples"
            )
        chosen = _selection.lowest(np.arange(labels.size), wanted, rank)
        return _selection.keep(source, np.sort(chosen))
    classes = _selection.checked_range(labels, class_names)
    counts = np.array([(labels == label).sum() for label in classes])
    wanted_of = shares(counts, fraction)
    for label, count, kept in zip(classes, counts, wanted_of, strict=True):
        if kept == 0:
            name = _selection.called(label, class_names)
            remedy = f"Use at least {1 / count:.3g}" if count else "Add some"
            raise ValueError(
                f"Class {name} would be left without examples: it has {count}. "
                f"Received: fraction={fraction:g}. {remedy}, or `stratified=False`."
            )
    parts = [
        _selection.lowest(np.flatnonzero(labels == label), int(kept), rank)
        for label, kept in zip(classes, wanted_of, strict=True)
    ]
    return _selection.keep(source, np.sort(np.concatenate(parts)))


def shares(counts: NDArray[np.int64], fraction: float) -> NDArray[np.int64]:
    """Returns how many examples of each class make up `fraction` of all.

    Every class keeps its own rounded share. Moving single examples between classes to
    hit the rounded total would break the nesting of smaller fractions in larger ones.
    """
    # 0.15 * 100 is 14.999999999999998; the small term keeps halves from falling down.
    kept: NDArray[np.int64] = np.floor(counts * fraction + 0.5 + 1e-9).astype(np.int64)
    return kept
