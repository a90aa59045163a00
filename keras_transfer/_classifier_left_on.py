"""Whether a pretrained model still ends in the classifier that it was trained with."""

from __future__ import annotations

from typing import Any

import keras

# What keras.applications and others call the layer of the classes.
NAMES = ("predictions", "logits", "classifier", "classification", "probs", "fc1000")
# ImageNet-1k, with a background class, ImageNet-21k and its variants.
NUMBERS_OF_CLASSES = (1000, 1001, 21841, 21843, 21842)


def last_layer(model: Any) -> keras.layers.Layer:
    """Returns the layer that a model ends in, looking into nested models."""
    while layers := getattr(model, "layers", None):
        model = layers[-1]
    return model


def looks_like_classifier(layer: keras.layers.Layer) -> str:
    """Says what the last layer of a backbone looks like, or nothing if it may be features.

    >>> import keras
    >>> looks_like_classifier(keras.layers.Dense(1000))
    'a layer of 1,000 outputs'
    >>> looks_like_classifier(keras.layers.Dense(64, "relu"))
    ''
    """
    activation = getattr(getattr(layer, "activation", None), "__name__", "")
    if isinstance(layer, keras.layers.Softmax):
        activation = "softmax"
    if activation in ("softmax", "sigmoid"):
        return f"a {activation} layer"
    units = getattr(layer, "units", None)
    if units in NUMBERS_OF_CLASSES:
        return f"a layer of {units:,} outputs"
    if activation == "linear" and layer.name.lower() in NAMES:
        return "a layer of logits"
    return ""
