"""What data holds, as a fingerprint: whether results that were kept belong to it."""

from __future__ import annotations

import hashlib
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_transfer._task_data import Part, batches
from keras_transfer.features._fingerprint import data_fingerprint
from keras_transfer.features._pipeline import examine

# Sums of digests of so many bytes, which carry over at their end.
_BYTES = 16


def content_fingerprint(part: Part) -> str:
    """Hashes the examples of a part, in whatever order they come.

    A data set that is not known to yield the same examples each time is read twice: of
    inputs and labels only what came the same again belongs to it. (Random augmentation
    leaves the labels, and random mixing of examples the form.)

    Args:
        part: Arrays or a data set that `read_through` has checked.
    """
    if len(part) > 1:
        return data_fingerprint(part)
    data = part[0]
    once = _sums(data)
    if isinstance(data, tf.data.Dataset) and not examine(data).reason:
        return f"{once}"
    pairs = zip(once, _sums(data), strict=True)
    return f"{[first if first == second else 'random' for first, second in pairs]}"


def _sums(data: Any) -> list[str]:
    """Returns the form of the data, and the sums over its examples and over their labels."""
    whole, labels, count, form = 0, 0, 0, ""
    for batch in batches(data):
        x, y = (_rows(part) for part in batch[:2])
        form = form or f"{[f'{a.dtype.kind}{a.ndim}' for a in (*x, *y)]}"
        size = len((x + y)[0])
        count += size
        for row in range(size):
            of_labels = _digest(y, row)
            labels += int.from_bytes(of_labels)
            whole += int.from_bytes(_digest(x, row, of_labels))
    return [f"{count} of {form}", *(f"{n % 256**_BYTES:x}" for n in (whole, labels))]


def _rows(part: Any) -> list[np.ndarray]:
    return [np.asarray(_one_by_one(leaf)) for leaf in keras.tree.flatten(part)]


def _one_by_one(leaf: Any) -> Any:
    if isinstance(leaf, tf.SparseTensor):
        return tf.sparse.to_dense(leaf)
    if isinstance(leaf, tf.RaggedTensor):
        return np.array([repr(row) for row in leaf.to_list()], dtype=object)
    return leaf


def _digest(arrays: list[np.ndarray], row: int, start: bytes = b"") -> bytes:
    digest = hashlib.blake2b(start, digest_size=_BYTES)
    for array in arrays:
        one = array[row]
        digest.update(repr(one).encode() if array.dtype == object else one.tobytes())
    return digest.digest()
