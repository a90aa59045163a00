"""Data sets whose order depends on how often they were opened before."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

from keras_transfer import _keras_internals
from keras_transfer.features._pipeline import SHUFFLE, examine, may_reorder

# One reading of these reads what lies before them more than once, or begins with it late.
REOPEN = {
    "_RepeatDataset": "repeat",
    "RepeatDataset": "repeat",
    "_ConcatenateDataset": "concatenate",
    "ConcatenateDataset": "concatenate",
}


def reason_not_repeatable(x: Any, *, shuffle: Any, steps_per_epoch: int | None) -> str:
    """Returns why another process cannot read the same batches in the same order.

    Args:
        x: `fit`'s `x`, where it is not arrays whose order the package gives.
        shuffle: As in `fit`.
        steps_per_epoch: As in `fit`.

    Returns:
        The reason; empty if it can.
    """
    if steps_per_epoch is not None:
        return "with steps_per_epoch an epoch begins where the last one left off"
    if isinstance(x, tf.data.Dataset):
        verdict = examine(x)
        return verdict.reason or _reason_of_order(x)
    if isinstance(x, keras.utils.PyDataset):
        if shuffle:
            return "a PyDataset with shuffle=True draws its order as it goes"
        if type(x).on_epoch_end is not keras.utils.PyDataset.on_epoch_end:
            return f"{type(x).__name__}.on_epoch_end may change what the next epoch reads"
        return ""
    if isinstance(x, types.GeneratorType | Iterator):
        return "a generator cannot be read again"
    return f"the order of data of type {type(x).__name__} is not known"


def reason_not_in_order(x: Any) -> str:
    """Returns why validation data may come in another order in another process.

    Nothing counts how often it was read, so it must not be shuffled at all.
    """
    if isinstance(x, tf.data.Dataset) and examine(x).is_shuffled:
        return "the validation data is shuffled"
    reason = reason_not_repeatable(x, shuffle=False, steps_per_epoch=None)
    return f"of the validation data: {reason}" if reason else ""


def _reason_of_order(dataset: tf.data.Dataset, behind: tuple[str, ...] = ()) -> str:
    kind = type(dataset).__name__
    if may_reorder(dataset, keeps_order=dataset.options().deterministic is not False):
        return "a parallel transformation has deterministic=False"
    if kind in SHUFFLE:
        seeds = [_keras_internals.dataset_attribute(dataset, name) for name in ("seed", "seed2")]
        if not any(seeds):
            return "the data set is shuffled without a seed"
        for after in behind:
            if after in REOPEN:
                return f"{REOPEN[after]} after shuffle draws several orders in one reading"
    inputs = _keras_internals.dataset_inputs(dataset)
    reasons = (_reason_of_order(one, (kind, *behind)) for one in inputs)
    return next((reason for reason in reasons if reason), "")


class CountedOpenings:
    """Counts how often a data set is read, and reads it until it was read as often as before.

    A seeded `shuffle` gives another order each time, which follows from the number of times
    before. A process that goes on with the work of another has to count on from there.

    Args:
        dataset: The data set.
    """

    def __init__(self, dataset: tf.data.Dataset) -> None:
        self.count = 0
        self._plain = dataset

        def opened(_: tf.Tensor) -> tf.Tensor:
            return tf.numpy_function(self._opened, [], tf.int64, stateful=True)

        plain: Any = tf.autograph.experimental.do_not_convert
        once = tf.data.Dataset.from_tensors(0).map(plain(opened))
        self.dataset = once.flat_map(plain(lambda _: dataset)).apply(
            tf.data.experimental.assert_cardinality(dataset.cardinality())
        )

    def _opened(self) -> int:
        self.count += 1
        return self.count

    def counting(self, read: Callable[[], Iterator[Any]]) -> Callable[[], Iterator[Any]]:
        """Returns `read`, which reads the data set past this object, so that it is counted."""

        def counted() -> Iterator[Any]:
            self.count += 1
            yield from read()

        return counted

    def advance_to(self, count: int) -> None:
        """Reads a first batch as often as it takes."""
        while self.count < count:
            next(iter(self._plain))
            self.count += 1
