"""Fingerprints: what features depend on, as one hash."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_transfer import _keras_internals
from keras_transfer.features._entry import EntryPoint

CHUNK_ROWS = 256


def prefix_fingerprint(model: Any, point: EntryPoint, *, fold_constants: bool) -> str:
    """Hashes all that the features at an entry point depend on, besides the data.

    That is the architecture, the weights and statistics before the point, the BatchNorm
    policy, preprocessing, precision, and the versions of Keras and TensorFlow.
    """
    backbone = model.backbone
    digest = hashlib.sha256()
    boundary = None
    layers = [layer for group in backbone.layer_groups[: point.start] for layer in group.layers]
    if point.start < len(backbone.layer_groups):
        found = backbone.layer_groups[point.start - 1].boundary
        boundary = [found.index, list(found.side_nodes), list(found.side_inputs)]
    described = {
        "versions": [keras.__version__, tf.__version__],
        "model": _describe(backbone.model),
        "boundary": boundary,
        "batch_norm": backbone.batch_norm,
        "preprocess": None if backbone.preprocess is None else _describe(backbone.preprocess),
        "dtype": [keras.config.dtype_policy().name, backbone.dtype_policy.name],
        "fold_constants": fold_constants,
        "pooled": _describe(model.head) if point.pooled else None,
    }
    digest.update(json.dumps(described, sort_keys=True).encode())
    if isinstance(backbone.preprocess, keras.layers.Layer):
        layers.append(backbone.preprocess)
    seen: set[int] = set()
    for layer in layers:
        for weight in layer.weights:
            if id(weight) not in seen:
                seen.add(id(weight))
                _update_array(digest, keras.ops.convert_to_numpy(weight))
    return digest.hexdigest()


def data_fingerprint(arrays: Any) -> str:
    """Hashes arrays: structure, types, shapes and every byte."""
    digest = hashlib.sha256()
    digest.update(repr(keras.tree.map_structure(lambda a: "*", arrays)).encode())
    for array in keras.tree.flatten(arrays):
        _update_array(digest, array)
    return digest.hexdigest()


def text_fingerprint(*parts: str) -> str:
    """Hashes texts."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _update_array(digest: Any, array: np.ndarray) -> None:
    digest.update(f"{array.dtype}{array.shape}".encode())
    if array.ndim == 0:
        digest.update(array.tobytes())
        return
    for start in range(0, len(array), CHUNK_ROWS):
        rows = np.ascontiguousarray(array[start : start + CHUNK_ROWS])
        digest.update(rows.tobytes())


def _describe(thing: Any) -> str:
    """Returns the configuration as text in which layers are numbered rather than named.

    Keras counts names (`dense_7`) through the process, and the same model built twice has the
    same features.
    """
    text = json.dumps(keras.saving.serialize_keras_object(thing), sort_keys=True, default=str)
    if isinstance(thing, keras.layers.Layer):
        for number, layer in enumerate(_keras_internals.flatten_layers(thing)):
            text = text.replace(json.dumps(layer.name), f'"@{number}"')
    return text
