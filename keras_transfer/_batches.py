"""Batches of any kind of training data, again and again, without a trace in the data."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_transfer import _checks, _keras_internals

KINDS = (
    "a `tf.data.Dataset`, a `keras.utils.PyDataset`, or a tuple of arrays (x, y) or "
    "(x, y, sample_weight)"
)


def endless_batches(data: Any, batch_size: int) -> Iterator[Any]:
    """Returns an endless iterator over batches, as `fit` would hand them to `train_step`.

    The first two batches are read at once, so that bad data is an error here.

    Args:
        data: A `tf.data.Dataset` of batches, a `keras.utils.PyDataset`, or a tuple of
            arrays, which are shuffled in an order of their own.
        batch_size: Examples in a batch, where `data` is arrays. At least 1.

    Raises:
        TypeError: If `data` is of another kind; a generator would be used up.
        ValueError: If there are fewer than two batches.
    """
    batches = _endless(data, batch_size)
    first_two = list(itertools.islice(batches, 2))
    return itertools.chain(first_two, batches)


def _endless(data: Any, batch_size: int) -> Iterator[Any]:
    if isinstance(data, tf.data.Dataset):
        return _of_dataset(_keras_internals.with_own_shuffles(data))
    if isinstance(data, keras.utils.PyDataset):
        return _of_py_dataset(data)
    if isinstance(data, tuple) and 1 <= len(data) <= 3:
        return _of_arrays(data, batch_size)
    if isinstance(data, np.ndarray | tf.Tensor):
        return _of_arrays((data,), batch_size)
    if hasattr(data, "__next__"):
        raise TypeError(
            f"`data` must be {KINDS}. Received: a {type(data).__name__}, which would be used up. "
            "Wrap it with `tf.data.Dataset.from_generator` or in a `keras.utils.PyDataset`."
        )
    raise TypeError(f"`data` must be {KINDS}. Received: data of type {type(data).__name__}")


def _of_dataset(dataset: tf.data.Dataset) -> Iterator[Any]:
    while True:
        number = 0
        for batch in dataset:
            number += 1
            yield batch
        _require_two(number)


def _of_py_dataset(dataset: keras.utils.PyDataset) -> Iterator[Any]:
    length = dataset.num_batches
    if length is not None:
        _require_two(length)
    index = 0
    while True:
        yield dataset[index if length is None else index % length]
        index += 1


def _of_arrays(data: tuple[Any, ...], batch_size: int) -> Iterator[Any]:
    batch_size = _checks.integer(batch_size, "batch_size", minimum=1)
    while data and data[-1] is None:
        data = data[:-1]
    arrays = keras.tree.map_structure(_array, data)
    lengths = {int(array.shape[0]) for array in keras.tree.flatten(arrays)}
    if len(lengths) != 1:
        raise ValueError(
            "The arrays in `data` must have the same number of examples. Received: "
            f"{', '.join(map(str, sorted(lengths)))}"
        )
    (length,) = lengths
    if length <= batch_size:
        _require_two(min(length, 1), f" of {batch_size} examples")
    # An order of its own: `fit` afterwards shuffles as if nothing had been.
    random = np.random.default_rng(0)
    order = random.permutation(length)
    while True:
        while len(order) < batch_size:
            order = np.concatenate([order, random.permutation(length)])
        chosen, order = order[:batch_size], order[batch_size:]
        yield keras.tree.map_structure(lambda array, at=chosen: array[at], arrays)


def _array(array: Any) -> Any:
    array = np.asarray(array)
    if array.ndim == 0:
        raise ValueError("`data` must hold arrays with an axis of examples. Received: a scalar")
    # As `fit` does with arrays.
    return array.astype(keras.config.floatx()) if array.dtype == np.float64 else array


def _require_two(number: int, size: str = "") -> None:
    if number >= 2:
        return
    raise ValueError(
        f"An LR range test needs at least two different batches, but the data has "
        f"{'none' if number == 0 else f'only one{size}'}. "
        + ("Pass data that is not empty." if number == 0 else "Use smaller batches, or more data.")
    )
