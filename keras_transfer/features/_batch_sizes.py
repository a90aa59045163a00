"""Sizes of the batches of a `tf.data.Dataset`, as far as its pipeline tells."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from keras_transfer import _keras_internals
from keras_transfer.features._pipeline import (
    BATCH,
    CACHE,
    CHANGE_ELEMENTS,
    KEEP_THE_SET,
    SHUFFLE,
    batch_size_of,
)

# These keep the sizes of batches, though not always their order.
_PASS_ON = (KEEP_THE_SET - CHANGE_ELEMENTS - {"_RepeatDataset"}) | CACHE | SHUFFLE


def batch_sizes(dataset: tf.data.Dataset) -> tuple[int | None, int | None]:
    """Returns the size of a data set's batches and that of the last one; `None` if not known."""
    return batch_size_of(dataset), last_batch_size(dataset)


def last_batch_size(dataset: tf.data.Dataset) -> int | None:
    """Returns how many examples the last batch has, before batches are shuffled, or `None`."""
    specs = keras.tree.flatten(dataset.element_spec)
    if specs and isinstance(specs[0], tf.TensorSpec) and specs[0].shape.rank:
        static = specs[0].shape[0]
        if static is not None:
            return int(static)
    inputs = _keras_internals.dataset_inputs(dataset)
    kind = type(dataset).__name__
    if len(inputs) != 1:
        return None
    if kind in BATCH | {"_PaddedBatchDataset"}:
        size = int(_keras_internals.dataset_attribute(dataset, "batch_size"))
        if _keras_internals.dataset_attribute(dataset, "drop_remainder"):
            return size
        count = int(inputs[0].cardinality())
        return None if count < 0 else (count % size or size)
    return last_batch_size(inputs[0]) if kind in _PASS_ON else None


def even_batches(dataset: tf.data.Dataset, replicas: int) -> tf.data.Dataset:
    """Cuts each batch to a multiple of `replicas` examples; leaves out what is left empty."""
    plain: Any = tf.autograph.experimental.do_not_convert

    def cut(*batch: Any) -> Any:
        rows = _rows(batch)
        kept = rows - rows % replicas
        batch = keras.tree.map_structure(lambda t: None if t is None else t[:kept], batch)
        return batch if len(batch) > 1 else batch[0]

    cut_down = dataset.map(plain(cut), num_parallel_calls=tf.data.AUTOTUNE)
    cut_down = cut_down.filter(plain(lambda *batch: _rows(batch) > 0))
    count, last = int(dataset.cardinality()), last_batch_size(dataset)
    if count >= 0 and last is not None:
        count -= last < replicas
        cut_down = cut_down.apply(tf.data.experimental.assert_cardinality(count))
    return cut_down


def _rows(batch: Any) -> Any:
    return tf.shape(next(v for v in keras.tree.flatten(batch) if v is not None))[0]
