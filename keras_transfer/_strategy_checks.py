"""What is checked of `tf.distribute` before training begins."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import keras
import tensorflow as tf

from keras_transfer import _keras_internals

REFUSED = {
    "ParameterServerStrategy": "Keras 3 cannot `fit` under it",
    "ParameterServerStrategyV2": "Keras 3 cannot `fit` under it",
    "CentralStorageStrategy": "metrics come out wrong under it",
    "CentralStorageStrategyV1": "metrics come out wrong under it",
}
INSTEAD = (
    "Use `tf.distribute.MirroredStrategy` for the GPUs of one machine, or "
    "`tf.distribute.MultiWorkerMirroredStrategy` for several machines."
)


def check_strategy(model: keras.Model) -> None:
    """Checks that a compiled model can train on the replicas it was built for.

    Raises:
        ValueError: If the strategy is none that Keras can train under; if model or optimizer
            were made outside of it; if `compile` was given what fails under it.
    """
    _check_keras_distribution()
    strategy = model.distribute_strategy
    check_kind(strategy)
    _check_scope(model, strategy)
    if strategy.num_replicas_in_sync > 1:
        _check_options(model)


def _check_keras_distribution() -> None:
    distribution = keras.distribution.distribution()
    if distribution is not None:
        warnings.warn(
            f"`keras.distribution.{type(distribution).__name__}` has no effect on the TensorFlow "
            f"backend: training runs on one device. {INSTEAD}",
            stacklevel=2,
        )


def check_kind(strategy: tf.distribute.Strategy) -> None:
    """Checks that a strategy is one under which the package works.

    Raises:
        ValueError: If it is known not to.
    """
    kind = type(strategy).__name__
    if kind in REFUSED:
        raise ValueError(f"{REFUSED[kind]}. Received: strategy={kind}. {INSTEAD}")
    if kind.startswith("TPU"):
        warnings.warn(f"`keras_transfer` was never tried under {kind}.", stacklevel=2)


def _check_scope(model: keras.Model, strategy: tf.distribute.Strategy) -> None:
    around = tf.distribute.get_strategy()
    if tf.distribute.has_strategy() and around is not strategy:
        raise ValueError(
            f"`fit` was called in the scope of a {type(around).__name__}, but {model.name!r} was "
            f"built in that of another {type(strategy).__name__}. Use one strategy throughout."
        )
    if strategy.num_replicas_in_sync == 1:
        return
    _check_made_inside(model.variables, strategy, model.name, "Build backbone and head")
    check_optimizer(model, model.optimizer)


def check_optimizer(model: keras.Model, optimizer: Any) -> None:
    """Checks that an optimizer was made in the scope of the model's strategy.

    Raises:
        ValueError: If one of its variables was not.
    """
    strategy = model.distribute_strategy
    if strategy.num_replicas_in_sync > 1 and isinstance(optimizer, keras.optimizers.Optimizer):
        remedy = "Make the optimizer and call `compile`"
        _check_made_inside(optimizer.variables, strategy, f"{model.name}'s optimizer", remedy)


def _check_made_inside(
    variables: Iterable[Any], strategy: tf.distribute.Strategy, of_what: str, remedy: str
) -> None:
    made_inside = strategy.extended.variable_created_in_scope
    outside = [v.path for v in variables if not made_inside(v.value)]
    if outside:
        shown = ", ".join(outside[:5]) + (", ..." if len(outside) > 5 else "")
        raise ValueError(
            f"{len(outside)} variables of {of_what} were made outside the scope of the "
            f"model's {type(strategy).__name__}: {shown}. {remedy} within `with "
            "strategy.scope():` too."
        )


def _check_options(model: keras.Model) -> None:
    for option, given, instead in (
        ("steps_per_execution", model.steps_per_execution > 1, "leave it at 1"),
        ("jit_compile", model.jit_compile is True, "leave it at 'auto', or pass False"),
    ):
        if given:
            raise ValueError(
                f"Keras cannot run {option}={getattr(model, option)!r} on "
                f"{model.distribute_strategy.num_replicas_in_sync} replicas: {instead} in "
                "`compile`."
            )


def batch_norms_that_move(
    model: keras.Model, variables: Iterable[keras.Variable]
) -> list[keras.layers.BatchNormalization]:
    """Returns the BatchNorms whose statistics move while `variables` train."""
    training = {id(v) for v in variables}
    backbone: Any = getattr(model, "backbone", None)
    still = backbone.batch_norms if getattr(backbone, "batch_norm", "train") != "train" else []
    exempt = {id(layer) for layer in still}
    # Without scale and offset it has no variables that train, and moves with its layer group.
    group_of: dict[int, Any] = {
        id(layer): group.variables
        for group in getattr(model, "layer_groups", ())
        for layer in group.all_layers
    }

    def moves(layer: keras.layers.BatchNormalization) -> bool:
        own = _keras_internals.own_trainable_variables(layer)
        return any(id(v) in training for v in own or group_of.get(id(layer), ()))

    return [
        layer
        for layer in _keras_internals.flatten_layers(model)
        if isinstance(layer, keras.layers.BatchNormalization)
        and id(layer) not in exempt
        and moves(layer)
    ]


def moves_local_statistics(model: keras.Model, variables: Iterable[keras.Variable]) -> bool:
    """Whether a BatchNorm trains on the statistics of each replica's share of a batch."""
    if model.distribute_strategy.num_replicas_in_sync == 1:
        return False
    return any(not layer.synchronized for layer in batch_norms_that_move(model, variables))


def check_even_batches(
    model: keras.Model, last: int | None, variables: Iterable[keras.Variable]
) -> None:
    """Checks that the last batch of a stock `fit` divides evenly by the number of replicas.

    Args:
        model: The compiled model.
        last: Size of the last batch, or `None` if it is not known.
        variables: What trains in any stage.

    Raises:
        ValueError: If it does not divide, and nothing weighs its examples alike.
    """
    replicas = model.distribute_strategy.num_replicas_in_sync
    if last is None or last % replicas == 0:
        return
    if _keras_internals.steps_are_wrapped(model) and not moves_local_statistics(model, variables):
        return
    raise ValueError(
        f"The last batch has {last} examples, which {replicas} replicas cannot share evenly: "
        "examples would weigh differently, and a BatchNormalization that trains could turn to "
        "NaN. Pass a `tf.data.Dataset` batched with drop_remainder=True, or use a "
        "`TransferModel`, whose `fit` weighs all examples alike."
    )


def warn_of_local_statistics(model: keras.Model, variables: Iterable[keras.Variable]) -> None:
    """Warns of BatchNorms that train, each replica on its own share of the batch."""
    if model.distribute_strategy.num_replicas_in_sync == 1:
        return
    local = [la.name for la in batch_norms_that_move(model, variables) if not la.synchronized]
    if local:
        shown = ", ".join(local[:3]) + (", ..." if len(local) > 3 else "")
        warnings.warn(
            f"BatchNormalization layers ({shown}) train on the statistics of each replica's "
            "share of a batch, so results differ from those of one device. Make them with "
            "synchronized=True, or keep the statistics as they are (`batch_norm`).",
            stacklevel=2,
        )
