"""A second optimizer with the state of the first, for runs that are not to be seen in it."""

from __future__ import annotations

from typing import Any

import keras

from keras_transfer import _keras_internals
from keras_transfer.optimizers.discriminative import DiscriminativeOptimizer


def copy_with_rate(
    optimizer: keras.optimizers.Optimizer, learning_rate: float
) -> keras.optimizers.Optimizer:
    """Copies an optimizer with its state, but with a plain number as its learning rate.

    Args:
        optimizer: A Keras optimizer, built or not. It is read, never changed.
        learning_rate: The copy's base learning rate, whatever the original's comes from.

    Returns:
        An optimizer of the same class. A `DiscriminativeOptimizer` keeps its groups,
        multipliers and step counts, and has no schedule shape. To be called in the scope
        of the model's strategy.
    """
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        return _copy_loss_scaling(optimizer, learning_rate)
    if isinstance(optimizer, DiscriminativeOptimizer):
        return _copy_discriminative(optimizer, learning_rate)
    copy = _unbuilt(optimizer, learning_rate)
    if optimizer.built:
        copy.build(_keras_internals.known_variables(optimizer))
        _assign_all(_without_rate(copy), _without_rate(optimizer))
    return copy


def _unbuilt(
    optimizer: keras.optimizers.Optimizer, learning_rate: float
) -> keras.optimizers.Optimizer:
    config = {**optimizer.get_config(), "learning_rate": learning_rate}
    copy = type(optimizer).from_config(config)
    # `loss_scale_factor` is `None` inside a `LossScaleOptimizer`, also in the config.
    _keras_internals.set_weight_decay_exclusions(
        copy, *_keras_internals.weight_decay_exclusions(optimizer)
    )
    return copy


def _copy_loss_scaling(
    optimizer: keras.optimizers.LossScaleOptimizer, learning_rate: float
) -> keras.optimizers.LossScaleOptimizer:
    copy = keras.optimizers.LossScaleOptimizer(
        copy_with_rate(optimizer.inner_optimizer, learning_rate),
        initial_scale=optimizer.initial_scale,
        dynamic_growth_steps=optimizer.dynamic_growth_steps,
        name=optimizer.name,
    )
    if optimizer.built:
        copy.build(_keras_internals.known_variables(optimizer.inner_optimizer))
        copy.step_counter.assign(optimizer.step_counter)
        copy.dynamic_scale.assign(optimizer.dynamic_scale)
    return copy


def _copy_discriminative(
    optimizer: DiscriminativeOptimizer, learning_rate: float
) -> DiscriminativeOptimizer:
    plain = optimizer.to_plain()
    rules = optimizer.get_config()["no_decay_on"]
    copy = DiscriminativeOptimizer(_unbuilt(plain, learning_rate), no_decay_on=rules)
    store: dict[str, Any] = {}
    optimizer.save_own_variables(store)
    copy.load_own_variables(store)
    if optimizer.built:
        copy.build(_keras_internals.known_variables(optimizer))
    copy.learning_rate = learning_rate
    return copy


def _without_rate(optimizer: keras.optimizers.Optimizer) -> list[keras.Variable]:
    # A schedule takes no place among the variables, a number does.
    rate = _keras_internals.rate_source(optimizer)
    return [v for v in optimizer.variables if v is not rate]


def _assign_all(to: list[keras.Variable], values: list[keras.Variable]) -> None:
    for variable, value in zip(to, values, strict=True):
        variable.assign(value)
