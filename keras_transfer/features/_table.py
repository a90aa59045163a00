"""Cached features and what goes with them, as one table of examples (or of whole batches)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf


@dataclasses.dataclass
class Column:
    """One tensor of every example.

    Attributes:
        dtype: The type that the model gets; `values` may be kept in a smaller one.
        values: An array with one row for each example, or a list of one array for each batch.
    """

    dtype: str
    values: np.ndarray | list[np.ndarray]

    @property
    def nbytes(self) -> int:
        """Size of what is kept."""
        arrays = self.values if isinstance(self.values, list) else [self.values]
        return sum(int(array.nbytes) for array in arrays)

    @property
    def shape(self) -> tuple[int | None, ...]:
        """Shape of a batch; `None` where batches differ, and for the number of examples."""
        if not isinstance(self.values, list):
            return (None, *self.values.shape[1:])
        shapes = [array.shape for array in self.values]
        if len({len(shape) for shape in shapes}) > 1:
            raise ValueError("Batches have tensors of different rank.")
        sizes = [set(lengths) for lengths in zip(*shapes, strict=True)][1:]
        return (None, *(min(s) if len(s) == 1 else None for s in sizes))

    def read(self, indices: Any) -> np.ndarray:
        """Returns the rows with these numbers; of whole batches, the batch with this number."""
        if isinstance(self.values, list):
            rows = self.values[int(indices)]
        else:
            rows = self.values[indices]
        return rows if rows.dtype == as_numpy_dtype(self.dtype) else rows.astype(self.dtype)


@dataclasses.dataclass
class Table:
    """Columns of the same length.

    Attributes:
        columns: The columns by name.
        n_rows: How many examples, or how many batches where they are kept whole.
        batch_size: Examples of a batch; `None` where batches are kept whole.
        structure: What the columns form together: names in dicts, lists and tuples.
    """

    columns: dict[str, Column]
    n_rows: int
    batch_size: int | None
    structure: Any

    @property
    def nbytes(self) -> int:
        """Size of what is kept."""
        return sum(column.nbytes for column in self.columns.values())

    @property
    def signature(self) -> Any:
        """The `tf.TensorSpec`s of a batch, in the table's structure."""
        return keras.tree.map_structure(
            lambda name: tf.TensorSpec(self.columns[name].shape, as_tf_dtype(self, name)),
            self.structure,
        )

    def read(self, indices: Any) -> list[np.ndarray]:
        """Returns the arrays of a batch in the order of the flat structure."""
        return [self.columns[name].read(indices) for name in keras.tree.flatten(self.structure)]


def as_numpy_dtype(name: str) -> np.dtype[Any]:
    """Returns the NumPy type of a Keras type name, bfloat16 included."""
    dtype: np.dtype[Any] = np.dtype(tf.as_dtype(name).as_numpy_dtype)
    return dtype


def fit_dtype(array: np.ndarray) -> str:
    """Returns the type in which `keras.Model.fit` hands on an array: floats in `floatx()`."""
    dtype = str(keras.backend.standardize_dtype(array.dtype))
    return str(keras.config.floatx()) if keras.backend.is_float_dtype(dtype) else dtype


def as_tf_dtype(table: Table, name: str) -> tf.DType:
    """Returns the TensorFlow type of a column."""
    return tf.as_dtype(table.columns[name].dtype)


def table_of_arrays(parts: Sequence[Any], batch_size: int, prefix: str) -> Table:
    """Makes a table of arrays in memory, which are not copied.

    Args:
        parts: Structures of arrays, such as targets and sample weights.
        batch_size: Examples of a batch.
        prefix: What the columns are called, with a number.
    """
    arrays = keras.tree.flatten(list(parts))
    columns = {
        f"{prefix}{number}": Column(fit_dtype(array), array) for number, array in enumerate(arrays)
    }
    structure = keras.tree.pack_sequence_as(list(parts), list(columns))
    return Table(columns, len(arrays[0]) if arrays else 0, batch_size, tuple(structure))


def join_tables(features: Table, rest: Table) -> Table:
    """Returns a table with the columns of both, which have the same rows."""
    columns = {**features.columns, **rest.columns}
    structure = (*features.structure, *rest.structure)
    return Table(columns, features.n_rows, features.batch_size, structure)


def named_structure(batch: Any, prefix: str) -> tuple[Any, dict[str, Any]]:
    """Returns the structure of a batch with names in the place of its arrays, and these by name."""
    flat = keras.tree.flatten(batch)
    names = [f"{prefix}{number}" for number in range(len(flat))]
    return keras.tree.pack_sequence_as(batch, names), dict(zip(names, flat, strict=True))
