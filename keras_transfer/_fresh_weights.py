"""Weights as a new model of the same architecture has them: for training from scratch."""

from __future__ import annotations

from collections.abc import Iterable

import keras

from keras_transfer import _keras_internals


def reinitialize(model: keras.Model, layers: Iterable[keras.layers.Layer] | None = None) -> None:
    """Gives a model, or some layers in it, the weights of a copy made anew from its config.

    The random numbers come from the global seed, unless an initializer has its own. What
    `Normalization` layers know of the data is no weight that was learnt, and stays.

    Args:
        model: A built model.
        layers: The layers to initialise; `None` for all.

    Raises:
        ValueError: If the model cannot be made anew from its config.
    """
    copy = _copy_of(model)
    inside = _keras_internals.flatten_layers(model)
    normalizing = [la for la in inside if isinstance(la, keras.layers.Normalization)]
    kept = {id(w) for layer in normalizing for w in layer.weights}
    if layers is not None:
        chosen = {id(w) for layer in layers for w in layer.weights}
        kept |= {id(w) for w in model.weights if id(w) not in chosen}
    for weight, fresh in zip(model.weights, copy.weights, strict=True):
        if id(weight) not in kept:
            weight.assign(fresh)


def _copy_of(model: keras.Model) -> keras.Model:
    try:
        copy = keras.models.clone_model(model)
        if not copy.built:
            copy.build_from_config(model.get_build_config())
    except (NotImplementedError, TypeError, ValueError) as error:
        raise ValueError(
            f"{model.name!r} cannot be made anew with random weights, since its config does not "
            f"tell all that it takes ({error}). Give {type(model).__name__!r} a `get_config`."
        ) from error
    if [tuple(w.shape) for w in copy.weights] != [tuple(w.shape) for w in model.weights]:
        raise ValueError(
            f"{model.name!r}, made anew from its config, has other weights: "
            f"{len(copy.weights)}, where the model has {len(model.weights)}. Put all layers into "
            f"the `get_config` of {type(model).__name__!r}."
        )
    return copy
