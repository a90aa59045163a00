"""Runs a function on the replicas of one machine, each on its share of a batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from keras_transfer import _keras_internals


def can_share(strategy: tf.distribute.Strategy) -> bool:
    """Whether a strategy has several replicas, all of them in this process."""
    several = strategy.num_replicas_in_sync > 1
    return several and not _keras_internals.is_multi_worker(strategy)


def shared(
    run: Callable[[Any], dict[str, Any]],
    alone: Callable[[Any], dict[str, Any]],
    strategy: tf.distribute.Strategy,
) -> Callable[[Any], dict[str, Any]]:
    """Returns a function of a whole batch that each replica runs on its share.

    Args:
        run: Takes a batch and returns tensors with a row for each example.
        alone: The same, for batches with fewer examples than there are replicas.
        strategy: A strategy that `can_share` accepts.
    """
    replicas = strategy.num_replicas_in_sync

    def on_each(shares: Any) -> dict[str, Any]:
        results = strategy.run(run, args=(shares,))
        local = {k: strategy.experimental_local_results(v) for k, v in results.items()}
        return {name: tf.concat(parts, axis=0) for name, parts in local.items()}

    traced = tf.function(on_each, autograph=False, reduce_retracing=True)

    def whole(batch: Any) -> dict[str, Any]:
        rows = int(keras.tree.flatten(batch)[0].shape[0])
        if rows < replicas:
            return alone(batch)

        def share(context: Any) -> Any:
            number = context.replica_id_in_sync_group
            begin, end = rows * number // replicas, rows * (number + 1) // replicas
            return keras.tree.map_structure(lambda tensor: tensor[begin:end], batch)

        shares = strategy.experimental_distribute_values_from_function(share)
        features: dict[str, Any] = traced(shares)
        return features

    return whole
