"""What layers hold: the layers inside them, and the variables that may train."""

from __future__ import annotations

import math
from collections.abc import Iterable

import keras

from keras_transfer import _keras_internals

NORMALIZATION_LAYERS = (
    keras.layers.BatchNormalization,
    keras.layers.GroupNormalization,
    keras.layers.LayerNormalization,
    keras.layers.RMSNormalization,
)


def all_layers(layers: Iterable[keras.layers.Layer]) -> list[keras.layers.Layer]:
    """Returns the layers and every layer inside them, each once."""
    nested = (inner for layer in layers for inner in _keras_internals.flatten_layers(layer))
    return list({id(layer): layer for layer in nested}.values())


def variables_that_may_train(layers: Iterable[keras.layers.Layer]) -> list[keras.Variable]:
    """Returns the variables that may train, frozen or not (no moving statistics), each once."""
    own = (v for la in all_layers(layers) for v in _keras_internals.own_trainable_variables(la))
    return list({id(v): v for v in own}.values())


def has_variables(layer: keras.layers.Layer) -> bool:
    """Whether the layer, or one inside it, holds a variable that may train."""
    return bool(variables_that_may_train([layer]))


def count_parameters(variables: Iterable[keras.Variable]) -> int:
    """Returns the number of elements of all variables together."""
    return sum(math.prod(variable.shape) for variable in variables)
