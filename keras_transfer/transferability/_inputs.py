"""What every score asks of its input: finite features, whole-number labels, two classes or more."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from keras_transfer import _checks

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


def checked_features(features: Any, name: str = "features") -> Floats:
    """Returns `features` as float64 of shape `(samples, features)`, or says what is wrong."""
    array = np.asarray(features)
    if array.dtype.kind not in "fiub":
        raise TypeError(
            f"`{name}` must hold real numbers. Received: an array of dtype {array.dtype}"
        )
    if array.ndim != 2:
        remedy = "Pool or flatten to one row per example." if array.ndim > 2 else ""
        raise ValueError(
            f"`{name}` must have shape (samples, features). "
            f"Received: {name}.shape={array.shape}. {remedy}".rstrip()
        )
    if array.shape[0] < 2 or array.shape[1] < 1:
        raise ValueError(
            f"`{name}` must hold at least 2 samples and 1 feature. "
            f"Received: {name}.shape={array.shape}"
        )
    # Squares of float16 features overflow, and float32 loses the small singular values.
    array = array.astype(np.float64)
    bad = ~np.isfinite(array)
    if bad.any():
        row, column = (int(i) for i in np.argwhere(bad)[0])
        raise ValueError(
            f"`{name}` must be finite. Received: {int(bad.sum())} values that are NaN or "
            f"infinite, the first {name}[{row}, {column}]={array[row, column]}. Look for a "
            "backbone that overflows (float16), or inputs that were scaled wrongly."
        )
    largest = float(np.abs(array).max())
    if largest and not 1e-100 < largest < 1e100:
        raise ValueError(
            f"`{name}` must be of a size that can be squared. Received: a largest value of "
            f"{largest:g}. Rescale them, all by one factor."
        )
    return array


def refuse_constant_features(features: Floats) -> None:
    """Raises where every example has the same features: no score says anything then."""
    if (features == features[0]).all():
        raise ValueError(
            "`features` are the same for every example, so they cannot tell classes apart. "
            f"Received: {features.shape[0]} equal rows. Look for a dead or unloaded backbone."
        )


def checked_labels(
    labels: Any,
    samples: int,
    *,
    name: str = "labels",
    beside: str = "features",
    num_classes: int | None = None,
) -> Integers:
    """Returns labels as int64 of shape `(samples,)`; at least two different ones."""
    array = whole_numbers(labels, samples, name=name, beside=beside, num_classes=num_classes)
    values = np.unique(array)
    if values.size < 2:
        raise ValueError(
            f"`{name}` must hold at least 2 classes: a score says how well classes are told "
            f"apart. Received: {array.size} examples, all of class {int(values[0])}. "
            "Shuffle before you take a part of sorted data."
        )
    return array


def whole_numbers(
    labels: Any,
    samples: int,
    *,
    name: str,
    beside: str,
    num_classes: int | None = None,
) -> Integers:
    """Returns labels as int64 of shape `(samples,)`, all in [0, `num_classes`)."""
    array = np.asarray(labels)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]  # Keras's own data sets hand out (samples, 1).
    if array.ndim != 1:
        remedy = " Turn one-hot labels into numbers with `argmax(axis=-1)`."
        raise ValueError(
            f"`{name}` must have shape (samples,). Received: {name}.shape={array.shape}."
            f"{remedy if array.ndim == 2 else ''}"
        )
    if array.size != samples:
        raise ValueError(
            f"`{name}` and `{beside}` must have one row per example each. "
            f"Received: {array.size} in `{name}`, {samples} in `{beside}`"
        )
    if array.dtype.kind not in "iu":
        raise TypeError(
            f"`{name}` must be whole numbers counted from 0. Received: dtype {array.dtype}. "
            f"Convert with `numpy.unique(..., return_inverse=True)` (names) or "
            f"`.astype(int)` (floats that are whole)."
        )
    array = array.astype(np.int64)
    highest = None if num_classes is None else _checks.integer(num_classes, "num_classes") - 1
    outside = array < 0 if highest is None else (array < 0) | (array > highest)
    if outside.any():
        first = int(np.flatnonzero(outside)[0])
        wanted = "at least 0" if highest is None else f"from 0 to {highest}"
        given = "" if num_classes is None else f", num_classes={num_classes}"
        raise ValueError(
            f"`{name}` must be {wanted}. Received: {int(outside.sum())} outside, the first "
            f"{name}[{first}]={int(array[first])}{given}"
        )
    return array


def checked_probabilities(probabilities: Any, name: str) -> Floats:
    """Returns rows of class probabilities as float64 of shape `(samples, classes)`."""
    array = checked_features(probabilities, name)
    # float16 softmax outputs sum to 1 only within 1e-3.
    sums = array.sum(axis=1)
    wrong = (array < 0).any(axis=1) | (abs(sums - 1) > 5e-3)
    if wrong.any():
        first = int(np.flatnonzero(wrong)[0])
        raise ValueError(
            f"`{name}` must be probabilities: at least 0, each row summing to 1. Received: "
            f"{int(wrong.sum())} rows that are not, the first {name}[{first}] with smallest value "
            f"{array[first].min():g} and sum {sums[first]:g}. Apply `keras.ops.softmax` to logits."
        )
    return array


def class_of_each(labels: Integers) -> tuple[Integers, Integers]:
    """Returns the index of each example's class among the classes present, and their counts.

    Scores do not depend on what the classes are called, so numbers without examples
    are left out rather than counted as empty classes.
    """
    _, index, counts = np.unique(labels, return_inverse=True, return_counts=True)
    return index.astype(np.int64), counts.astype(np.int64)


def class_means(rows: Floats, index: Integers, counts: Integers) -> Floats:
    """Returns the mean row of each class, of shape `(classes, columns)`."""
    sums = np.zeros((counts.size, rows.shape[1]))
    np.add.at(sums, index, rows)
    means: Floats = sums / counts[:, None]
    return means
