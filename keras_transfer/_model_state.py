"""Everything about a compiled model that a few training steps change, kept and put back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_transfer import _keras_internals


class ModelState:
    """What `model` is like at this moment.

    Kept are the values of all variables (weights, moving statistics, metrics, seed
    generators, and each `tf.Variable` that a layer holds), the flags of layers and
    variables, which optimizer there is, and the traced functions. The optimizer's own state
    is not: give the model another optimizer meanwhile.

    Args:
        model: A built and compiled model.
    """

    def __init__(self, model: keras.Model) -> None:
        self._model = model
        # Copies: on a CPU, `numpy()` may show the variable's own memory.
        self._values = [(v, np.array(v.numpy(), copy=True)) for v in _copies(model)]
        self._layer_flags = [(la, la.trainable) for la in _keras_internals.flatten_layers(model)]
        self._flags = [(v, v.trainable) for v in model.variables]
        self._compiled_flags = _keras_internals.compiled_trainable_state(model)
        self._optimizer = model.optimizer
        self._functions = (model.train_function, model.test_function)

    def restore(self) -> None:
        """Makes the model what it was."""
        model = self._model
        # Metrics that were made meanwhile start at their zeros, as they would have.
        model.reset_metrics()
        for variable, value in self._values:
            variable.assign(value)
        self._restore_flags()
        model.optimizer = self._optimizer
        model.train_function, model.test_function = self._functions

    def _restore_flags(self) -> None:
        # Setting a layer's flag sets those of everything inside it, so what holds more
        # comes first, and variables come last.
        size = {id(la): len(_keras_internals.flatten_layers(la)) for la, _ in self._layer_flags}
        for layer, flag in sorted(self._layer_flags, key=lambda pair: -size[id(pair[0])]):
            layer.trainable = flag
        for variable, flag in self._flags:
            variable.trainable = flag
        _keras_internals.set_compiled_trainable_state(self._model, self._compiled_flags)


def _copies(model: keras.Model) -> list[tf.Variable]:
    """Returns the TensorFlow variables behind all variables, one for each replica.

    Replicas have statistics of their own (BatchNorm's), which a read averages and an
    assignment makes equal.
    """
    found: list[Any] = [v.value for v in [*model.variables, *model.metrics_variables]]
    for layer in _keras_internals.flatten_layers(model):
        found.extend(raw_variables(layer))
    found = list({id(v): v for v in found}.values())
    local = model.distribute_strategy.experimental_local_results
    return [copy for variable in found for copy in local(variable)]


def raw_variables(layer: keras.layers.Layer) -> list[tf.Variable]:
    """Returns the `tf.Variable`s that a layer's attributes hold: Keras lists only its own."""
    return list(_raw_variables(vars(layer), set()))


def _raw_variables(value: Any, seen: set[int]) -> Iterator[tf.Variable]:
    """Yields the `tf.Variable`s in nested containers and modules."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, tf.Variable):
        yield value
    elif isinstance(value, tf.Module):
        yield from value.variables
    elif isinstance(value, tf.random.Generator):
        yield value.state
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from _raw_variables(one, seen)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _raw_variables(one, seen)
