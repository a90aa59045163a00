"""The kinds of data that `fit` takes, read in one way.

A source knows how many batches it has, what a batch looks like, and how to read it once. What
it cannot know it says: `reason` is why its values may differ each time they are read.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_transfer.features._pipeline import batch_size_of, examine
from keras_transfer.features._prefix import input_signature
from keras_transfer.features._table import fit_dtype

NO_TENSOR = tf.type_spec_from_value(None)

Batch = tuple[Any, ...]  # (inputs,), (inputs, targets) or (inputs, targets, sample weights)


@dataclasses.dataclass
class Source:
    """Data for `fit` or for validation.

    Attributes:
        kind: What it is called in messages.
        n_batches: How many batches an epoch has; `None` where that is not known.
        read: Opens it and yields its batches, once.
        signature: The structure of a batch's inputs, as `tf.TensorSpec`s.
        is_shuffled: Whether each epoch reads it in another order.
        keeps_batches: Whether whole batches are shuffled, rather than examples.
        reason: Why its values may differ each time; empty if they do not.
        differs: Whether they are known to differ, or cannot be kept at all.
        arrays: Inputs, targets and sample weights, where they are arrays.
        batch_size: Examples of a batch, where they are arrays.
        n_examples: How many examples there are at most, where that is known.
        identity: What stands for the data within this process.
        share: Which of the rows it holds, where each worker has its own; else empty.
        target_bytes: What its targets and sample weights take, which are kept with the features
            of each entry point; 0 where they are arrays, or of a size that is not known.
    """

    kind: str
    n_batches: int | None
    read: Callable[[], Iterator[Batch]]
    signature: Any
    is_shuffled: bool = False
    keeps_batches: bool = False
    reason: str = ""
    differs: bool = False
    arrays: Batch | None = None
    batch_size: int | None = None
    n_examples: int | None = None
    identity: Any = None
    share: str = ""
    target_bytes: int = 0


def is_numeric_array(value: Any) -> bool:
    """Whether `value` is a dense array of numbers whose examples can be taken by number."""
    if isinstance(value, tf.Tensor):
        is_number = value.dtype.is_numpy_compatible and value.dtype != tf.string
        return bool(is_number and value.shape.rank > 0)
    return isinstance(value, np.ndarray) and value.dtype.kind in "biuf" and value.ndim > 0


def as_arrays(x: Any, y: Any, sample_weight: Any) -> Batch | None:
    """Returns `fit`'s arguments as NumPy arrays, or `None` if they are not plain arrays."""
    given = [part for part in (x, y, sample_weight) if part is not None]
    leaves = [leaf for part in given for leaf in keras.tree.flatten(part)]
    if x is None or not leaves or not all(is_numeric_array(leaf) for leaf in leaves):
        return None
    if sample_weight is not None and y is None:
        return None
    if len({int(leaf.shape[0]) for leaf in leaves}) != 1:
        return None  # Keras has the error for this.
    return tuple(keras.tree.map_structure(np.asarray, part) for part in given)


def split_arrays(arrays: Batch, fraction: float) -> tuple[Batch, Batch]:
    """Cuts off the last `fraction` of the examples for validation, as `keras.Model.fit` does."""
    count = len(keras.tree.flatten(arrays)[0])
    cut = int(np.floor(count * (1.0 - fraction)))
    if not 0 < cut < count:
        raise ValueError(
            f"`validation_split` leaves no examples on one side. Received: "
            f"validation_split={fraction} for {count} examples."
        )
    head = keras.tree.map_structure(lambda a: a[:cut], arrays)
    tail = keras.tree.map_structure(lambda a: a[cut:], arrays)
    return head, tail


def array_source(arrays: Batch, batch_size: int, *, shuffle: bool) -> Source:
    """Reads arrays in their own order, batch by batch."""
    count = len(keras.tree.flatten(arrays)[0])

    def read() -> Iterator[Batch]:
        for start in range(0, count, batch_size):
            stop = start + batch_size
            yield keras.tree.map_structure(
                lambda a: a[start:stop].astype(fit_dtype(a), copy=False),  # noqa: B023
                arrays,
            )

    return Source(
        kind="arrays",
        n_batches=-(-count // batch_size),
        read=read,
        signature=keras.tree.map_structure(
            lambda a: tf.TensorSpec((None, *a.shape[1:]), fit_dtype(a)), arrays[0]
        ),
        is_shuffled=shuffle,
        arrays=arrays,
        batch_size=batch_size,
        n_examples=count,
    )


def dataset_source(dataset: tf.data.Dataset) -> Source:
    """Reads a batched `tf.data.Dataset`."""
    verdict = examine(dataset)
    cardinality = int(dataset.cardinality())
    spec = dataset.element_spec
    inputs = _as_tuple(spec)[0]
    size = batch_size_of(dataset)
    problem = _problem_of_batches(spec)
    return Source(
        kind="a tf.data.Dataset",
        n_batches=cardinality if cardinality >= 0 else None,
        read=lambda: (_as_tuple(batch) for batch in dataset),
        signature=_without_batch_size(inputs),
        is_shuffled=verdict.is_shuffled,
        keeps_batches=verdict.shuffles_batches,
        reason=problem or verdict.reason,
        differs=bool(problem) or verdict.differs,
        n_examples=None if size is None or cardinality < 0 else cardinality * size,
        identity=dataset,
        target_bytes=0 if size is None or cardinality < 0 else cardinality * size * _row(spec),
    )


def _problem_of_batches(spec: Any) -> str:
    """Returns why batches of this `element_spec` cannot be kept; empty if they can."""
    inputs, *targets = _as_tuple(spec)
    if not all(isinstance(leaf, tf.TensorSpec) for leaf in tf.nest.flatten([inputs, targets])):
        return "its batches hold something else than dense tensors"
    if any(leaf.dtype == tf.string for leaf in tf.nest.flatten(targets)):
        return "its targets hold strings"
    return ""


def py_dataset_source(data: keras.utils.PyDataset, *, shuffle: bool) -> Source:
    """Reads a `keras.utils.PyDataset`, whose values may be others each time."""
    n_batches = data.num_batches
    return Source(
        kind="a PyDataset",
        n_batches=n_batches,
        read=lambda: (_as_tuple(data[index]) for index in range(n_batches)),
        signature=input_signature(_as_tuple(data[0])[0]),
        is_shuffled=shuffle,
        keeps_batches=True,
        reason="a PyDataset may yield other values each time",
    )


def generator_source(data: Iterator[Any], steps: int | None) -> tuple[Source, Iterator[Any]]:
    """Reads `steps` batches of a generator.

    Returns:
        The source, and a generator that still yields the batch that was looked at.
    """
    first = next(data)
    # Keras takes generators, and not other iterators.
    whole = (batch for batch in itertools.chain([first], data))
    source = Source(
        kind="a generator",
        n_batches=steps,
        read=lambda: (_as_tuple(batch) for batch in itertools.islice(whole, steps)),
        signature=input_signature(keras.tree.map_structure(np.asarray, _as_tuple(first)[0])),
        keeps_batches=True,
        reason="a generator may yield other values each time",
    )
    return source, whole


def _as_tuple(batch: Any) -> Batch:
    """Returns a batch, or the `element_spec` of one, without what is left out at its end."""
    if not isinstance(batch, tuple | list):
        return (batch,)
    parts = list(batch)
    while len(parts) > 1 and isinstance(parts[-1], type(None) | type(NO_TENSOR)):
        parts.pop()
    return tuple(parts)


def _row(spec: Any) -> int:
    """Returns what the targets and sample weights of an example take, as far as is known."""
    rest = [s for s in keras.tree.flatten(list(_as_tuple(spec)[1:])) if s is not None]
    if not all(isinstance(s, tf.TensorSpec) and None not in (s.shape or (None,))[1:] for s in rest):
        return 0
    return sum(int(np.prod(s.shape[1:])) * s.dtype.size for s in rest)


def _without_batch_size(spec: Any) -> Any:
    return keras.tree.map_structure(
        lambda s: (
            tf.TensorSpec((None, *s.shape[1:]), s.dtype)
            if isinstance(s, tf.TensorSpec) and s.shape.rank
            else s
        ),
        spec,
    )
