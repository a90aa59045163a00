"""Data of a task in parts (training, validation, test), checked before long work on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_transfer._fit_checks import first_batch

PART = "a tuple of arrays (inputs, labels), a batched `tf.data.Dataset` or a `PyDataset`"

# What goes to `fit` and `evaluate` in the place of `x` and `y`.
Part = tuple[Any, ...]


def as_part(data: Any, name: str) -> Part:
    """Returns a part of the data as what `fit` takes first: `(x, y)` or `(dataset,)`.

    Args:
        data: Arrays of inputs and labels, or a data set of both.
        name: What it is called in messages.

    Raises:
        TypeError: If it is of another kind.
        ValueError: If it is empty, endless, of two lengths, or holds NaN.
    """
    if isinstance(data, keras.utils.PyDataset):
        if data.num_batches is None:
            raise ValueError(f"{name} never ends: its `num_batches` is None. Return a number.")
        return (data,)
    if isinstance(data, tf.data.Dataset):
        _check_dataset(data, name)
        return (data,)
    if not isinstance(data, tuple | list) or len(data) != 2:
        held = f" of {len(data)}" if isinstance(data, tuple | list) else ""
        raise TypeError(f"{name} must be {PART}. Received: a {type(data).__name__}{held}")
    x, y = (keras.tree.map_structure(_as_array, part) for part in data)
    leaves = keras.tree.flatten((x, y))
    lengths = sorted({len(leaf) if leaf.ndim else 0 for leaf in leaves})
    if len(lengths) != 1 or not lengths[0]:
        raise ValueError(
            f"{name} must hold as many labels as inputs, and at least one. Received: "
            f"{' and '.join(map(str, lengths))} examples"
        )
    for leaf in leaves:
        _check_finite(leaf, name)
    return (x, y)


def _as_array(value: Any) -> Any:
    array = np.asarray(value)
    return array.astype(keras.config.floatx()) if array.dtype == np.float64 else array


def _check_dataset(data: tf.data.Dataset, name: str) -> None:
    if not isinstance(data.element_spec, tuple) or len(data.element_spec) < 2:
        raise ValueError(
            f"{name} must be a data set of (inputs, labels). Received elements: {data.element_spec}"
        )
    if int(data.cardinality()) == tf.data.INFINITE_CARDINALITY:
        raise ValueError(f"{name} never ends. Leave out `repeat`, or `take` what an epoch reads.")


def _check_finite(array: np.ndarray, name: str, place: str = "") -> None:
    if array.dtype.kind != "f":
        return
    bad = ~np.isfinite(array)
    if bad.any():
        at = tuple(map(int, np.argwhere(bad)[0]))
        raise ValueError(
            f"{name} must be finite. Received: {int(bad.sum())} values that are NaN or infinite, "
            f"the first at {list(at)}{place}: {array[at]}. Leave these examples out."
        )


def labels_of(part: Part) -> np.ndarray | None:
    """Returns the labels of a part that is one array of whole numbers for one array of inputs."""
    if len(part) < 2 or isinstance(part[1], dict | list | tuple):
        return None
    return _as_class_ids(part[1])


def _as_class_ids(labels: np.ndarray) -> np.ndarray | None:
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    return labels if labels.ndim == 1 and labels.dtype.kind in "iu" else None


def read_through(part: Part, name: str, check: Callable[[Any], None]) -> np.ndarray | None:
    """Reads a part once, before training would read it many times; returns its class ids.

    Args:
        part: A part of the data.
        name: What it is called in messages.
        check: Called with the labels of arrays, or of each batch of a data set.

    Returns:
        The class ids, or `None` where labels are something else.

    Raises:
        ValueError: If a data set is empty or holds NaN, or what `check` raises.
    """
    if len(part) > 1:
        check(part[1])
        return labels_of(part)
    found: list[np.ndarray | None] = []
    for number, batch in enumerate(batches(part[0])):
        if not isinstance(batch, tuple) or len(batch) < 2:
            raise ValueError(
                f"{name} must be a data set of (inputs, labels). Received: batch {number} is a "
                f"{type(batch).__name__}"
            )
        for leaf in keras.tree.flatten(batch[:2]):
            if isinstance(leaf, tf.Tensor | np.ndarray):
                _check_finite(np.asarray(leaf), name, f" of batch {number}")
        labels = batch[1]
        check(labels)
        is_array = isinstance(labels, tf.Tensor | np.ndarray)
        found.append(_as_class_ids(np.asarray(labels)) if is_array else None)
    if not found:
        raise ValueError(f"{name} is empty: the data set has no batch.")
    ids = [labels for labels in found if labels is not None]
    return np.concatenate(ids) if len(ids) == len(found) else None


def batches(data: Any) -> Iterator[Any]:
    """Reads a data set once: a `tf.data.Dataset`, or a `PyDataset` by its numbers."""
    if isinstance(data, tf.data.Dataset):
        yield from data
    else:
        yield from (data[number] for number in range(data.num_batches))


def check_classes(in_train: np.ndarray | None, in_test: np.ndarray | None) -> None:
    """Checks that class ids make a task: two classes or more, none only in the test.

    Raises:
        ValueError: If they do not.
    """
    for labels, name in ((in_train, "training"), (in_test, "test")):
        if labels is not None and (labels == labels[0]).all():
            raise ValueError(
                f"The {name} data holds one class only, so nothing can be learnt from it or told "
                f"by it. Received: {len(labels)} examples, all of class {int(labels[0])}. Shuffle "
                "before you take a part of sorted data."
            )
    if in_train is None or in_test is None:
        return
    missing = sorted(set(in_test.tolist()) - set(in_train.tolist()))
    if missing:
        raise ValueError(
            f"Class {missing[0]} is in the test data and not in the training data, so it cannot be "
            f"learnt ({len(missing)} such classes). Draw the parts by class: "
            "`keras_transfer.data.subset(..., stratified=True)`."
        )


def head_of(part: Part) -> Any:
    """Returns the first batch of a part, or its first examples; `None` where looking uses it up."""
    if len(part) == 1:
        return first_batch(part[0])
    return keras.tree.map_structure(lambda array: array[:2], part)


def reading(part: Part, batch_size: int) -> dict[str, Any]:
    """Returns the arguments by which `fit` and `evaluate` read a part."""
    if len(part) == 1:
        return {"x": part[0]}
    return {"x": part[0], "y": part[1], "batch_size": batch_size}
