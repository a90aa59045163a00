"""Weighs the replicas' losses, so that all examples of a batch weigh alike.

Keras takes the mean loss of each replica's examples, and the mean of these. Where a batch does
not divide evenly, an example on a replica with fewer of them would weigh more than another.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

SEVERAL = object()  # each output has weights of its own, so that no one share fits all


class ReplicaShares:
    """What the loss of each replica of this process weighs, while a step is traced."""

    def __init__(self) -> None:
        self._shares: dict[int, Any] = {}

    @contextlib.contextmanager
    def of_step(self, examples: Any) -> Iterator[None]:
        """Weighs this replica's loss by its share of the examples, for as long as it steps.

        Args:
            examples: What `examples_that_weigh` returns of its data.
        """
        replica = tf.distribute.get_replica_context()
        if examples is None or replica is None:
            yield
            return
        # By the replica's number: the strategy traces each replica in a thread of its own.
        number = _number(replica)
        if examples is SEVERAL:
            self._shares[number] = SEVERAL
        else:
            examples = tf.cast(examples, tf.float32)
            total = replica.all_reduce(tf.distribute.ReduceOp.SUM, examples)
            # Keras has divided the loss by the number of replicas already.
            share = examples * replica.num_replicas_in_sync / tf.maximum(total, 1e-12)
            self._shares[number] = share
        try:
            yield
        finally:
            del self._shares[number]

    def weigh(self, loss: Any) -> Any:
        """Returns the loss times this replica's share.

        Raises:
            ValueError: If each output has sample weights by which its loss is divided.
        """
        replica = tf.distribute.get_replica_context()
        share = None if replica is None else self._shares.get(_number(replica))
        if share is SEVERAL:
            raise ValueError(
                "On several replicas, losses with reduction='mean_with_sample_weight' cannot be "
                "divided by weights of their own for each output. Use reduction="
                "'sum_over_batch_size', or pass one array of weights for all outputs."
            )
        return loss if share is None else loss * tf.cast(share, loss.dtype)


def _number(replica: Any) -> int:
    return int(tf.get_static_value(replica.replica_id_in_sync_group))  # a constant while tracing


def examples_that_weigh(model: keras.Model, data: Any) -> Any:
    """Returns how much a replica's share of a batch weighs among all, as a scalar tensor.

    Args:
        model: The compiled model.
        data: The replica's share of a batch.

    Returns:
        The number of its examples; `None` where the shares are of one size, or where losses are
        sums, which need no weights. Under losses with `reduction="mean_with_sample_weight"` it is
        the sum of the sample weights, if there are any, or `SEVERAL` if each output has its own.
    """
    x, _, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    first = next(value for value in keras.tree.flatten(x) if value is not None)
    reduction = loss_reduction(model)
    if reduction == "mean_with_sample_weight" and sample_weight is not None:
        weights = keras.tree.flatten(sample_weight)
        return tf.reduce_sum(weights[0]) if len(weights) == 1 else SEVERAL
    # A static size is the same on all replicas; eagerly, every size is known.
    if first.shape[0] is not None and not tf.executing_eagerly():
        return None
    if reduction in ("sum_over_batch_size", "mean_with_sample_weight"):
        return tf.shape(first)[0]
    return None


def loss_reduction(model: keras.Model) -> str | None:
    """Returns how the compiled losses are reduced over a batch, or `None` if in several ways."""
    losses = [loss for loss in keras.tree.flatten(model.loss) if loss is not None]
    # Names and functions become a mean over the batch.
    found = {getattr(loss, "reduction", "sum_over_batch_size") for loss in losses}
    found = {"sum_over_batch_size" if one == "mean" else one for one in found}
    if not found:  # only what layers add
        return "sum_over_batch_size"
    return found.pop() if len(found) == 1 else None
