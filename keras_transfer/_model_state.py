"""Everything about a compiled model that a few training steps change, kept and put back."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from keras_transfer import _keras_internals


class ModelState:
    """What `model` is like at this moment.

    Kept are the values of all variables (weights, moving statistics, metrics, seed
    generators), the flags of layers and variables, which optimizer there is, and the traced
    functions. The optimizer's own state is not: give the model another optimizer meanwhile.

    Args:
        model: A built and compiled model.
    """

    def __init__(self, model: keras.Model) -> None:
        self._model = model
        # Copies: on a CPU, `numpy()` may show the variable's own memory.
        self._values = [(v, np.array(v.numpy(), copy=True)) for v in _variables(model)]
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


def _variables(model: keras.Model) -> list[keras.Variable]:
    found: list[Any] = [*model.variables, *model.metrics_variables]
    return list({id(v): v for v in found}.values())
