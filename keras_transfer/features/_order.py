"""The order of examples: a function of a seed and the epoch, the same cached and uncached."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf


@dataclasses.dataclass
class EpochOrder:
    """Which example comes when.

    `keras.Model.fit` on arrays draws an order that can be had again only by drawing all the
    earlier ones; this one follows from the epoch, so that a cached run, an uncached run and a
    run that was resumed all see the same batches.

    Attributes:
        seed: What the orders are drawn from; `None` for the order of the data.
        epoch: The epoch in progress, counted from 0.
    """

    seed: int | None
    epoch: int = 0

    def indices(self, count: int) -> np.ndarray:
        """Returns the numbers below `count` in the order of the epoch, int64."""
        if self.seed is None:
            return np.arange(count)
        return np.random.default_rng((self.seed, self.epoch)).permutation(count)


def ordered_dataset(
    read: Callable[[np.ndarray], Sequence[np.ndarray]],
    signature: Any,
    *,
    done: int = 0,
    count: int,
    batch_size: int | None,
    order: EpochOrder,
) -> tf.data.Dataset:
    """Returns a data set that reads its batches in the order of the epoch.

    Args:
        read: Takes the numbers of the examples of a batch (of one batch, where `batch_size`
            is `None`) and returns its arrays, in the order of the flat `signature`.
        signature: `tf.TensorSpec`s of a batch, in the structure that `fit` is to see.
        count: How many examples there are (how many batches, where `batch_size` is `None`).
        batch_size: Examples of a batch; `None` where batches are kept whole.
        order: The order, asked anew whenever iterating starts.
        done: How many examples (batches) at the beginning of the order are left out.
    """
    flat = keras.tree.flatten(signature)

    def batch_of(indices: tf.Tensor) -> Any:
        # Not a gather from a constant: TensorFlow would copy the arrays to make one.
        arrays = tf.numpy_function(
            lambda i: tuple(np.ascontiguousarray(a) for a in read(i)),
            [indices],
            [spec.dtype for spec in flat],
            stateful=False,
        )
        for array, spec in zip(arrays, flat, strict=True):
            array.set_shape(spec.shape)
        return keras.tree.pack_sequence_as(signature, list(arrays))

    # A data set is opened once per epoch, and only then is the order asked for.
    def indices_of_epoch(_: tf.Tensor) -> tf.Tensor:
        indices = tf.numpy_function(
            lambda: order.indices(count)[done:], [], tf.int64, stateful=True
        )
        return tf.ensure_shape(indices, (count - done,))

    plain: Any = tf.autograph.experimental.do_not_convert  # converting takes time
    opened = tf.data.Dataset.from_tensors(0).map(plain(indices_of_epoch))

    def batches_of(indices: tf.Tensor) -> tf.data.Dataset:
        examples = tf.data.Dataset.from_tensor_slices(indices)
        return examples if batch_size is None else examples.batch(batch_size)

    n_batches = count - done if batch_size is None else -(-(count - done) // batch_size)
    dataset = opened.flat_map(plain(batches_of)).map(plain(batch_of))
    dataset = dataset.apply(tf.data.experimental.assert_cardinality(n_batches))
    return dataset.prefetch(tf.data.AUTOTUNE)
