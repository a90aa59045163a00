"""`tf.distribute`: what Keras's `fit` and `evaluate` lack on several replicas and workers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from keras_transfer import _keras_internals, _workers
from keras_transfer._replica_shares import ReplicaShares, examples_that_weigh


def prepare(model: keras.Model, sample_batch: Any = None) -> None:
    """Makes `fit` and `evaluate` of a compiled model work on several replicas and workers.

    `TransferModel.compile` calls it by itself. Call it for any other model that is to train
    under `MultiWorkerMirroredStrategy`, where Keras's own `fit` fails, once after `compile`,
    in each worker. Under `MirroredStrategy` it lets `fit` and `evaluate` begin with a batch that
    does not divide evenly by the number of replicas. On one replica it does nothing.

    Metrics are made in the strategy's scope before the first step, and what a step returns can be
    reduced over workers. All examples of a batch weigh alike, however they are divided; a
    `train_step` of your own has to call `optimizer.scale_loss(loss)` for that, as Keras's does.

    Args:
        model: A compiled model, built in the scope of its strategy.
        sample_batch: A batch as `fit` reads it (inputs, or a tuple of inputs, targets and sample
            weights), with which a model that is not built is built now rather than in `fit`.

    Raises:
        ValueError: If the model is not compiled.

    Example:

    >>> import keras
    >>> from keras_transfer import distribute
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    >>> model.compile("sgd", "mse")
    >>> distribute.prepare(model)  # one device: nothing to do
    """
    if not model.compiled:
        raise ValueError(
            f"{model.name!r} is not compiled. Call `compile` in the strategy's scope first."
        )
    strategy = model.distribute_strategy
    if strategy.num_replicas_in_sync == 1:
        return
    if not _keras_internals.steps_are_wrapped(model):
        _keras_internals.build_from_specs(model)
        _keras_internals.wrap_steps(model, _on_replicas)
    if sample_batch is not None:
        _keras_internals.build_metrics(model, sample_batch)


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether this process is the one that writes, where several workers train together.

    Add callbacks that write files (`ModelCheckpoint`, `CSVLogger`, `TensorBoard`) where this is
    so, and nowhere else. `ResumableTraining` belongs into every worker: it asks by itself.

    Args:
        strategy: The strategy of the training.

    Returns:
        `True` in the chief, which is the first worker where the cluster names no other, and
        under every strategy of a single process.

    Example:

    >>> import tensorflow as tf
    >>> from keras_transfer import distribute
    >>> distribute.is_chief(tf.distribute.get_strategy())
    True
    """
    return _workers.is_chief(strategy)


def _on_replicas(model: keras.Model, step: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Returns a train or test step as several replicas, or workers, need it."""
    shares = ReplicaShares()
    is_multi_worker = _keras_internals.is_multi_worker(model.distribute_strategy)

    def step_on_replica(data: Any) -> Any:
        _keras_internals.weigh_loss(model.optimizer, shares.weigh)
        if isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer):
            _keras_internals.check_finite_on_all_replicas(model.optimizer)
        # What is evaluated is counted by the metrics, example by example.
        weighing = examples_that_weigh(model, data) if step == model.train_step else None
        with shares.of_step(weighing):
            results = step(data)
        if is_multi_worker:
            # Keras takes the mean over workers along the first axis, so there has to be one.
            results = keras.tree.map_structure(
                lambda result: tf.convert_to_tensor(result)[tf.newaxis], results
            )
        return results

    plain: Any = tf.autograph.experimental.do_not_convert
    wrapped: Callable[[Any], Any] = plain(step_on_replica)
    return wrapped
