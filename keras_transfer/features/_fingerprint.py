"""Fingerprints: what features depend on, as one hash."""

from __future__ import annotations

import hashlib
import json
import types
import zlib
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_transfer import _keras_internals
from keras_transfer.features._entry import EntryPoint
from keras_transfer.layers._head_split import split_head

CHUNK_ROWS = 256


def prefix_fingerprint(model: Any, point: EntryPoint, *, fold_constants: bool) -> str:
    """Hashes all that the features at an entry point depend on, besides the data.

    That is the architecture, the weights and statistics before the point, the BatchNorm
    policy, preprocessing, precision, the code of the user's own layers and functions, and the
    versions of Keras and TensorFlow.
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
        "pooled": _describe_pooling(model.head) if point.pooled else None,
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


def weights_checksum(model: Any, point: EntryPoint) -> int:
    """Returns a quick checksum of the weights and statistics before an entry point."""
    checksum = 0
    for group in model.backbone.layer_groups[: point.start]:
        for layer in group.layers:
            for weight in layer.weights:
                array = np.ascontiguousarray(keras.ops.convert_to_numpy(weight))
                checksum = zlib.crc32(array.reshape(-1).view(np.uint8).data, checksum)
    return checksum


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


def _describe(thing: Any) -> list[Any]:
    """Returns what a layer or function computes, as JSON.

    Layers are numbered rather than named: Keras counts names (`dense_7`) through the process,
    and the same model built twice has the same features.
    """
    config = _without_flags(keras.saving.serialize_keras_object(thing))
    text = json.dumps(config, sort_keys=True, default=str)
    layers = _layers_of(thing)
    for number, layer in enumerate(layers):
        text = text.replace(json.dumps(layer.name), f'"@{number}"')
    # Configurations name the user's functions and classes, and say nothing of their code.
    code = [_code_of(thing)] if isinstance(thing, types.FunctionType) else []
    for layer in layers:
        code += [_code_of(f) for f in _own_functions(layer)]
    return [text, *code]


def _describe_pooling(head: keras.layers.Layer) -> Any:
    split = split_head(head)
    assert split is not None
    if not isinstance(split.pools_by, Mapping):
        return [_describe(layer) for layer in split.pools_by]
    return {
        name: _code_of(value) if isinstance(value, types.FunctionType) else value
        for name, value in split.pools_by.items()
    }


def _without_flags(config: Any) -> Any:
    """Leaves out what does not matter to what a frozen layer computes."""
    if isinstance(config, Mapping):
        left = config.keys() - {"trainable", "compile_config"}
        return {key: _without_flags(config[key]) for key in left}
    if isinstance(config, list | tuple):
        return [_without_flags(value) for value in config]
    return config


def _layers_of(thing: Any) -> list[keras.layers.Layer]:
    is_layer = isinstance(thing, keras.layers.Layer)
    return _keras_internals.flatten_layers(thing) if is_layer else []


def _own_functions(layer: keras.layers.Layer) -> list[types.FunctionType]:
    """Returns the functions of a layer that are the user's: its methods and what it was given."""
    classes = [cls for cls in type(layer).__mro__ if not _is_known(cls)]
    values = [value for cls in classes for _, value in sorted(vars(cls).items())]
    values += [value for _, value in sorted(vars(layer).items())]
    return [v for v in values if isinstance(v, types.FunctionType) and not _is_known(v)]


def _is_known(thing: Any) -> bool:
    """Whether code comes with a package whose version stands in the fingerprint, or with Python."""
    return str(thing.__module__).partition(".")[0] in ("builtins", "keras", "tensorflow")


def _code_of(function: types.FunctionType) -> list[str]:
    return [*_describe_code(function.__code__), repr(function.__defaults__)]


def _describe_code(code: types.CodeType) -> list[str]:
    """Returns what code does, wherever it stands."""
    parts = [code.co_code.hex(), repr(code.co_names)]
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            parts += _describe_code(constant)
        elif isinstance(constant, frozenset):
            parts.append(repr(sorted(map(repr, constant))))  # their order is random
        else:
            parts.append(repr(constant))
    return parts
