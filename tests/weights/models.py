"""Small models shared by the tests of weight transfer."""

from __future__ import annotations

import keras
import numpy as np


def backbone(channels=3, name="backbone"):
    """A convolution with BatchNorm and a dense layer, all named."""
    inputs = keras.Input((8, 8, channels))
    x = keras.layers.Conv2D(4, 3, name="stem")(inputs)
    x = keras.layers.BatchNormalization(name="stem_norm")(x)
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(inputs, keras.layers.Dense(6, name="features")(x), name=name)


def classifier(classes, channels=3, name="classifier", nested=True):
    """The backbone, nested or inlined, and a head called "head"."""
    inputs = keras.Input((8, 8, channels))
    body = backbone(channels)
    x = body(inputs) if nested else inputs
    if not nested:
        for layer in body.layers[1:]:
            x = layer(x)
    return keras.Model(inputs, keras.layers.Dense(classes, name="head")(x), name=name)


def randomize(model, seed=0):
    """Gives every weight its own visible values, moving statistics too."""
    rng = np.random.default_rng(seed)
    model.set_weights([0.5 + rng.random(w.shape) for w in model.get_weights()])
    return model


def values(model):
    """A copy of all weights."""
    return [np.array(w) for w in model.get_weights()]


def equal(model, before):
    """Which weights are bit for bit what they were."""
    return [bool(np.array_equal(a, b)) for a, b in zip(model.get_weights(), before, strict=True)]
