"""Splits a head into what has neither weights nor randomness, and the rest."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import keras

from keras_transfer import _keras_internals
from keras_transfer.layers._pooling import resolve_pooling
from keras_transfer.layers.heads import Head


@dataclasses.dataclass(frozen=True)
class HeadSplit:
    """A head in two parts: `classify(pool(features))` is what the head returns.

    Attributes:
        pool: Takes the backbone's features; the same each time.
        classify: Takes what `pool` returns, and `training`.
    """

    pool: Callable[[Any], Any]
    classify: Callable[..., Any]


def split_head(head: keras.layers.Layer) -> HeadSplit | None:
    """Splits a head after its leading layers without weights, or returns `None`.

    One of the package's heads is split after its pooling, a `keras.Sequential` before its
    first layer with weights, dropout, or anything else that training might change. Other heads,
    and those that pool nothing, are not.
    """
    if isinstance(head, Head):
        return _split_own(head)
    if type(head) is keras.Sequential and head.built:
        return _split_sequential(head)
    return None


def _split_own(head: Head) -> HeadSplit | None:
    # A pooling of the user's own may have weights.
    own = type(head).call is not Head.call or type(head).pool is not Head.pool
    if own or head.features_rank is None:
        return None
    if resolve_pooling(head.pooling, head.features_rank) is None:
        return None

    def pool(features: Any) -> Any:
        return head.pool(features, _mask_of(features, head.features_key))

    def classify(pooled: Any, training: bool | None = None) -> Any:
        return head(pooled, training=training, pooled=True)

    return HeadSplit(pool, classify)


def _mask_of(features: Any, key: str | None) -> Any:
    if isinstance(features, dict):
        features = features.get(key)
    return _keras_internals.get_mask(features)


def _split_sequential(head: keras.Sequential) -> HeadSplit | None:
    layers = list(head.layers)
    leading = 0
    while leading < len(layers) and _is_always_the_same(layers[leading]):
        leading += 1
    if leading in (0, len(layers)):
        return None

    def pool(features: Any) -> Any:
        return _run(layers[:leading], features, False)

    def classify(pooled: Any, training: bool | None = None) -> Any:
        return _run(layers[leading:], pooled, training)

    return HeadSplit(pool, classify)


def _is_always_the_same(layer: keras.layers.Layer) -> bool:
    """Whether a layer does the same whatever has been trained, and in training too."""
    inside = _keras_internals.flatten_layers(layer)
    # A functional model takes `training` only to hand it on.
    own = [one for one in inside if _keras_internals.functional_of(one) is None]
    return not layer.weights and not any(
        _keras_internals.is_random(one)
        or _keras_internals.accepts_training(one)
        or one.activity_regularizer is not None
        for one in own
    )


def _run(layers: list[keras.layers.Layer], value: Any, training: bool | None) -> Any:
    for layer in layers:
        if _keras_internals.accepts_training(layer):
            value = layer(value, training=training)
        else:
            value = layer(value)
    return value
