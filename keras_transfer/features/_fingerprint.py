"""Fingerprints: what features depend on, as one hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_transfer import _keras_internals
from keras_transfer.features._entry import EntryPoint
from keras_transfer.features._graph_text import describe_ancestors
from keras_transfer.features._prefix import Prefix

CHUNK_ROWS = 256
WORDS_OF_A_ROW = 2048


def prefix_fingerprint(prefix: Prefix, point: EntryPoint, inputs: Any) -> str:
    """Hashes all that the features at an entry point depend on, besides the data.

    What runs is taken from the traced graph, so that settings, code of the user's own and what
    it refers to are all seen; a name is not part of it, since Keras counts names through the
    process. The values of variables and captured tensors, the BatchNorm policy, precision, and
    the versions of Keras and TensorFlow are hashed beside it.

    Args:
        prefix: The frozen layers.
        point: One of its entry points.
        inputs: The `tf.TensorSpec`s of the inputs.
    """
    concrete = prefix.concrete(inputs)
    outputs = [t for name, t in sorted(concrete.structured_outputs.items()) if point.owns(name)]
    text, captured = describe_ancestors(concrete.graph, outputs)
    described = {
        "versions": [keras.__version__, tf.__version__],
        "graph": text,
        "fields": sorted(name for name in concrete.structured_outputs if point.owns(name)),
        "batch_norm": prefix.model.backbone.batch_norm,
        "dtype": [keras.config.dtype_policy().name, prefix.model.backbone.dtype_policy.name],
        "fold_constants": prefix.fold_constants,
    }
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    for value in _keras_internals.captured_values(concrete.graph, captured):
        _update_array(digest, value)
    return digest.hexdigest()


def weights_checksum(model: Any, point: EntryPoint) -> Callable[[], bytes]:
    """Returns a function that takes a checksum of the weights and statistics before a point.

    It is asked twice in every epoch, and an epoch on features is short. Reading the variables one
    by one takes as long as a traced graph does, without the half second that the tracing takes.
    """
    groups = model.backbone.layer_groups[: point.start]
    weights = [w.value for group in groups for layer in group.layers for w in layer.weights]

    def checksum() -> bytes:
        digest = hashlib.sha256()
        for weight in weights:
            update_with_sums(digest, np.asarray(_read(weight)))
        return digest.digest()

    return checksum


def update_with_sums(digest: Any, array: np.ndarray) -> None:
    """Updates a hash with an array's sums, which takes less time than hashing each byte.

    The words of the array are laid out as a table, whose rows and columns are added up. A word
    that has changed changes the sum of its row; two that were exchanged change those of their
    rows or of their columns. It is no fingerprint to tell apart the work of an adversary.

    Args:
        digest: The hash, of `hashlib`.
        array: Any array; one of less than 16 kB is hashed byte by byte.
    """
    content = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    whole_rows = len(content) - len(content) % (8 * WORDS_OF_A_ROW)
    if whole_rows:
        table = content[:whole_rows].view(np.uint64).reshape(-1, WORDS_OF_A_ROW)
        digest.update(table.sum(axis=0))
        digest.update(table.sum(axis=1))
    digest.update(content[whole_rows:])


def _read(variable: Any) -> tf.Tensor:
    if isinstance(variable, tf.distribute.DistributedValues):
        return tf.convert_to_tensor(variable)
    # In a third of the time that the variable's own way to be read takes.
    return tf.raw_ops.ReadVariableOp(resource=variable.handle, dtype=variable.dtype)


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
