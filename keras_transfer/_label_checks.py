"""Whether labels fit what a head returns and what the loss takes, before training starts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_transfer._fit_checks import first_batch
from keras_transfer.layers.heads import Head

SPARSE = ("sparse_categorical_crossentropy", "SparseCategoricalCrossentropy")
ONE_HOT = (
    "categorical_crossentropy",
    "CategoricalCrossentropy",
    "categorical_focal_crossentropy",
    "CategoricalFocalCrossentropy",
)
BINARY = (
    "binary_crossentropy",
    "BinaryCrossentropy",
    "binary_focal_crossentropy",
    "BinaryFocalCrossentropy",
)
# Losses that compare outputs with targets one by one, and stretch one to the other's shape.
ELEMENTWISE = (
    "mean_squared_error",
    "MeanSquaredError",
    "mean_absolute_error",
    "MeanAbsoluteError",
    "mean_absolute_percentage_error",
    "MeanAbsolutePercentageError",
    "mean_squared_logarithmic_error",
    "MeanSquaredLogarithmicError",
    "huber",
    "Huber",
    "log_cosh",
    "LogCosh",
    "poisson",
    "Poisson",
)
NOT_LOOKED_AT = "(later batches are not looked at)"


def check_labels(model: Any, x: Any, y: Any, validation_data: Any = None) -> None:
    """Checks that labels fit a head with one output: arrays wholly, data sets by their first batch.

    Args:
        model: A compiled `TransferModel`.
        x: `fit`'s `x`.
        y: `fit`'s `y`.
        validation_data: `fit`'s `validation_data`.

    Raises:
        ValueError: If class ids are out of range or no whole numbers, if one-hot labels
            have another width, if yes-or-no labels are not between 0 and 1, or if the targets
            of a regression have another width than one of the package's heads.
    """
    task = _Task.of(model)
    if task is None:
        return
    if y is not None:
        task.check(y, "in `y`")
    else:
        task.check(_labels_of_first_batch(x), f"in the first batch {NOT_LOOKED_AT}")
    if isinstance(validation_data, tuple | list):
        if len(validation_data) >= 2:
            task.check(validation_data[1], "in `validation_data`")
    elif validation_data is not None:
        where = f"in the first batch of `validation_data` {NOT_LOOKED_AT}"
        task.check(_labels_of_first_batch(validation_data), where)


def label_check(model: Any, where: str) -> Callable[[Any], None]:
    """Returns a function that checks labels against a model as `check_labels` does.

    Args:
        model: A compiled `TransferModel`.
        where: What follows "the labels" in messages.
    """
    task = _Task.of(model)
    return lambda labels: None if task is None else task.check(labels, where)


def takes_class_ids(model: keras.Model) -> bool:
    """Whether the loss of a compiled model takes class ids."""
    return _name_of(_only_one(model.loss)) in SPARSE


def _labels_of_first_batch(data: Any) -> Any:
    batch = first_batch(data)
    return batch[1] if isinstance(batch, tuple) and len(batch) >= 2 else None


@dataclasses.dataclass(frozen=True)
class _Task:
    """What a model's labels have to be like.

    Attributes:
        loss: Name of the loss.
        units: Number of outputs; 1 or the number of classes.
        stated: How many outputs there are and who says so, to begin a message with.
        rank: Number of axes of the output, with the batch; `None` where it is not known.
        ignored: A class id that the loss leaves out.
    """

    loss: str
    units: int
    stated: str
    rank: int | None
    ignored: int | None

    @classmethod
    def of(cls, model: Any) -> _Task | None:
        """Returns the task of a model with one output and a loss that takes labels."""
        loss = _only_one(model.loss)
        name = _name_of(loss)
        by_element = name in ELEMENTWISE and isinstance(model.head, Head)
        if name not in (*SPARSE, *ONE_HOT, *BINARY) and not by_element:
            return None
        shape = getattr(model, "output_shape", None)
        if shape is not None and not (isinstance(shape, tuple) and shape and shape[-1]):
            return None
        counts = [n for n in ("num_classes", "num_outputs") if hasattr(model.head, n)]
        units = getattr(model.head, counts[0]) if counts else shape[-1] if shape else None
        if units is None or (units < 2 and name not in (*BINARY, *ELEMENTWISE)):
            return None
        by_head = f"The head has {counts[0]}={units}" if counts else ""
        stated = by_head or f"The model has {units} outputs"
        rank = None if shape is None else len(shape)
        return cls(name, units, stated, rank, getattr(loss, "ignore_class", None))

    def check(self, y: Any, where: str) -> None:
        y = _only_one(y)
        if y is None or isinstance(y, dict | list | tuple | tf.RaggedTensor | tf.SparseTensor):
            return
        labels = np.asarray(y)
        self._check_numbers(labels, where)
        if not labels.size:
            return
        if self.loss in SPARSE:
            self._check_class_ids(labels, where)
        elif self.loss in ONE_HOT:
            self._check_one_hot(labels, where)
        elif self.loss in ELEMENTWISE:
            self._check_width(labels, where)
        else:
            self._check_binary(labels, where)

    def _check_numbers(self, labels: Any, where: str) -> None:
        if labels.dtype.kind not in "biufV":  # V: bfloat16
            raise ValueError(
                f"The labels {where} must be numbers. Received an array of {labels.dtype} that "
                f"begins with {labels.ravel()[:1].tolist()!r}. Number the classes from 0, in an "
                "order that you keep."
            )
        if labels.dtype.kind == "f" and not np.isfinite(labels).all():
            raise ValueError(
                f"The labels {where} hold {np.count_nonzero(~np.isfinite(labels))} values that are "
                "not finite (NaN or infinity). Leave these examples out, or label them."
            )

    def _check_class_ids(self, labels: Any, where: str) -> None:
        if labels.shape[-1] == self.units and labels.ndim == (self.rank or 2) > 1:
            raise ValueError(
                f"The labels {where} have shape {labels.shape}, as one-hot labels do; {self.loss} "
                "takes class ids of shape (batch,). Use loss='categorical_crossentropy'."
            )
        ids = labels if self.ignored is None else labels[labels != self.ignored]
        if ids.dtype.kind == "f" and not (ids == np.floor(ids)).all():
            raise ValueError(
                f"The labels {where} must be class ids, and {ids[ids != np.floor(ids)][0]} is no "
                "whole number. For a quantity use a `RegressionHead` and loss='mse'."
            )
        if ids.size and (ids.min() < 0 or ids.max() >= self.units):
            raise ValueError(
                f"{self.stated}, so class ids run from 0 to {self.units - 1}, but "
                f"the labels {where} run from {ids.min()} to {ids.max()}. Raise `num_classes`, "
                "or renumber the labels."
            )

    def _check_one_hot(self, labels: Any, where: str) -> None:
        if labels.ndim < 2 or labels.shape[-1] != self.units:
            raise ValueError(
                f"{self.stated}, but the labels {where} have shape "
                f"{labels.shape}; {self.loss} takes one-hot labels of shape (batch, {self.units}). "
                "For class ids use loss='sparse_categorical_crossentropy'."
            )

    def _check_width(self, labels: Any, where: str) -> None:
        rank = self.rank or max(2, labels.ndim)
        if labels.ndim == rank and labels.shape[-1] == self.units:
            return
        if self.units == 1 and labels.ndim == max(1, rank - 1):
            return
        if self.units == 1 and self.rank is None and labels.ndim > 1:
            return  # one for each position of a sequence, perhaps
        shape = ", ".join(["batch", *["..."] * (rank > 2), str(self.units)])
        remedy = f"Set num_outputs={labels.shape[-1]}, or leave out columns."
        if self.units > 1:
            remedy = "Give a value for each output."
        if "num_classes" in self.stated and labels.dtype.kind in "biu":
            remedy = "For class ids use loss='sparse_categorical_crossentropy'."
        raise ValueError(
            f"{self.stated}, but the targets {where} have shape {labels.shape}; {self.loss} takes "
            f"targets of shape ({shape}), and Keras would stretch others to it. {remedy}"
        )

    def _check_binary(self, labels: Any, where: str) -> None:
        if self.units > 1 and (labels.ndim < 2 or labels.shape[-1] != self.units):
            raise ValueError(
                f"{self.stated}, but the labels {where} have shape {labels.shape}; {self.loss} "
                f"takes a 0 or 1 for each, of shape (batch, {self.units}). For one of several "
                "classes use activation='softmax' and loss='sparse_categorical_crossentropy'."
            )
        if labels.min() < 0 or labels.max() > 1:
            raise ValueError(
                f"{self.loss} takes labels between 0 (no) and 1 (yes), but the labels {where} run "
                f"from {labels.min()} to {labels.max()}. For several classes use a head of "
                "num_classes=3 or more, activation='softmax' and "
                "loss='sparse_categorical_crossentropy'."
            )


def _only_one(structure: Any) -> Any:
    """Returns what a list, tuple or dict of one holds; anything else as it is."""
    while isinstance(structure, list | tuple | dict) and len(structure) == 1:
        values = structure.values() if isinstance(structure, dict) else structure
        structure = next(iter(values))
    return structure


def _name_of(loss: Any) -> str:
    if isinstance(loss, str):
        try:
            loss = keras.losses.get(loss)  # "mse" is short for another name
        except ValueError:
            return str(loss)
    return str(getattr(loss, "__name__", type(loss).__name__))
