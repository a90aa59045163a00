"""Choose examples by position and seed, the same on every machine, and keep only those."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

Integers = NDArray[np.int64]

_MEMORY_BYTES = 1 << 30
_OTHER_ORDER = (
    "The data set comes in another order each time, so examples cannot be chosen by position. "
    "Choose first, then shuffle."
)


def ranks(count: int, seed: int) -> NDArray[np.uint64]:
    """Returns a pseudo-random number for each position, from whole-number arithmetic alone.

    SplitMix64 of (seed, position). NumPy's generators may change their streams between
    versions; this cannot. A position's rank does not depend on `count`, so choosing the
    lowest ranks nests: the 5 of a class are among its 10.
    """
    with np.errstate(over="ignore"):  # Wrapping at 2^64 is what the mixing relies on.
        golden = np.uint64(0x9E3779B97F4A7C15)
        start = _mix(np.array([seed % 2**64], dtype=np.uint64) + golden)
        return _mix(start + golden * (np.arange(count, dtype=np.uint64) + np.uint64(1)))


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def lowest(positions: Integers, how_many: int, rank: NDArray[np.uint64]) -> Integers:
    """Returns the `how_many` positions of lowest rank."""
    chosen: Integers = positions[np.argsort(rank[positions], kind="stable")[:how_many]]
    return chosen


@dataclasses.dataclass(frozen=True, eq=False)
class Labelled:
    """Data with the labels of all its examples.

    Args:
        data: A `tf.data.Dataset` or a tuple of arrays.
        labels: The label of every example, in order.
        batch_size: Examples per batch, or `None` for arrays and single examples.
    """

    data: Any
    labels: Integers
    batch_size: int | None = None


def read(data: Any) -> Labelled:
    """Reads the label of every example.

    Raises:
        TypeError: If `data` is neither a tuple of arrays nor a data set of pairs, or its
            labels are not whole numbers.
        ValueError: If there are no examples, or the data set has no end.
    """
    if isinstance(data, tf.data.Dataset):
        return _read_dataset(data)
    if not isinstance(data, tuple | list) or len(data) not in (2, 3):
        raise TypeError(
            "Give a `tf.data.Dataset` of (inputs, labels), or the arrays (inputs, labels). "
            f"Received: {type(data).__name__}"
        )
    labels = _flat(np.asarray(data[1]))
    for part in keras.tree.flatten([data[0], *data[2:]]):
        if not np.shape(part):
            raise TypeError(
                "Inputs and sample weights must be arrays, or structures of arrays. Received: a "
                f"{type(part).__name__} ({part!r}) within them. Turn lists into arrays with "
                "`np.asarray`."
            )
        if len(part) != labels.size:
            raise ValueError(
                "Inputs, labels and sample weights must have one entry per example each. "
                f"Received: {len(part)} beside {labels.size} labels"
            )
    if labels.size == 0:
        raise ValueError("There are no examples, so there is nothing to choose from.")
    return Labelled(tuple(data), labels)


def _read_dataset(data: tf.data.Dataset) -> Labelled:
    spec = data.element_spec
    if not isinstance(spec, tuple) or len(spec) not in (2, 3):
        raise TypeError(
            "The data set must yield (inputs, labels) or (inputs, labels, sample weights). "
            f"Received: elements of {spec}"
        )
    if data.cardinality().numpy() == tf.data.INFINITE_CARDINALITY:
        raise ValueError(
            "The data set has no end, so examples cannot be chosen from all of it. "
            "Received: a data set that repeats. Call this before `.repeat()`."
        )
    labels = data.map(lambda _, label, *__: label)
    is_single = spec[1].shape.rank == 0
    if is_single:
        labels = labels.batch(1024)  # Python takes longer over each element than over its label.
    parts = [np.asarray(part) for part in labels.as_numpy_iterator()]
    if not parts:
        raise ValueError("There are no examples, so there is nothing to choose from.")
    if is_single:
        return Labelled(data, _flat(np.concatenate(parts)))
    return Labelled(data, np.concatenate([_flat(part) for part in parts]), len(parts[0]))


def _flat(labels: NDArray[Any]) -> Integers:
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise TypeError(
            "Labels must be one whole number per example. "
            f"Received: labels of shape {labels.shape} and dtype {labels.dtype}. "
            + (
                "Turn one-hot labels into numbers with `argmax(axis=-1)`."
                if labels.ndim > 1
                else "Number them, as with `np.unique(labels, return_inverse=True)`."
            )
        )
    return labels.astype(np.int64)


def keep(source: Labelled, chosen: Integers) -> Any:
    """Returns the chosen examples, in their order, in the form that the data had.

    A data set whose chosen examples fit in memory becomes one over those, batched as
    before; a larger one stays lazy. Either way labels are compared with those that the
    choice was made from: data that comes in another order each time is an error, not
    other examples.
    """
    if source.batch_size is None and not isinstance(source.data, tf.data.Dataset):
        return tuple(keras.tree.map_structure(lambda part: np.asarray(part)[chosen], source.data))
    kept = _only(source, chosen)
    if _fits_in_memory(kept, chosen.size):
        try:
            everything = next(iter(kept.batch(chosen.size)))
        except tf.errors.InvalidArgumentError as error:
            if _OTHER_ORDER in str(error):
                raise ValueError(_OTHER_ORDER) from None
            raise
        kept = tf.data.Dataset.from_tensor_slices(everything)
    if source.batch_size is None:
        return kept
    shapes = [part.shape for part in tf.nest.flatten(kept.element_spec)]
    # Padding needs the rank, which generators with `output_types` alone do not tell.
    if any(s.rank is None for s in shapes) or all(s.is_fully_defined() for s in shapes):
        return kept.batch(source.batch_size)
    # Batches that were padded to their own longest example come apart in unequal lengths.
    return kept.padded_batch(source.batch_size)


def _only(source: Labelled, chosen: Integers) -> tf.data.Dataset:
    mask = np.zeros(source.labels.size, dtype=bool)
    mask[chosen] = True
    wanted, expected = tf.constant(mask), tf.constant(source.labels)

    def check(position: Any, example: Any) -> Any:
        same = tf.debugging.assert_equal(
            tf.cast(tf.reshape(example[1], []), tf.int64),
            expected[position],
            _OTHER_ORDER,
        )
        with tf.control_dependencies([same]):
            return tf.nest.map_structure(tf.identity, example)

    examples = source.data if source.batch_size is None else source.data.unbatch()
    kept = examples.enumerate().filter(lambda position, _: wanted[position]).map(check)
    return kept.apply(tf.data.experimental.assert_cardinality(chosen.size))


def _fits_in_memory(examples: tf.data.Dataset, count: int) -> bool:
    parts = tf.nest.flatten(examples.element_spec)
    if not all(isinstance(p, tf.TensorSpec) and p.shape.is_fully_defined() for p in parts):
        return False
    # Strings have no known length; text of the size of 1 KB each is the guess.
    sizes = [1024 if part.dtype == tf.string else part.dtype.size for part in parts]
    each = sum(int(np.prod(p.shape)) * size for p, size in zip(parts, sizes, strict=True))
    return each * count <= _MEMORY_BYTES


def called(label: int, class_names: Sequence[str] | None) -> str:
    """Returns a class as messages name it: its number, and its name where that is known."""
    if class_names and 0 <= label < len(class_names):
        return f"{label} ({class_names[label]!r})"
    return str(label)


def checked_range(labels: Integers, class_names: Sequence[str] | None) -> list[int]:
    """Returns the classes that must be present, after checking labels against the names."""
    if class_names is None:
        return [int(label) for label in np.unique(labels)]
    outside = (labels < 0) | (labels >= len(class_names))
    if outside.any():
        first = int(np.flatnonzero(outside)[0])
        raise ValueError(
            f"Labels must be from 0 to {len(class_names) - 1}, one for each of `class_names`. "
            f"Received: label {int(labels[first])} at example {first}"
        )
    return list(range(len(class_names)))
