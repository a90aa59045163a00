"""Makes sources of what the user gave to `fit`, or says why they cannot be read twice."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

from keras_transfer.features._sources import (
    Batch,
    Source,
    array_source,
    as_arrays,
    dataset_source,
    generator_source,
    py_dataset_source,
)


@dataclasses.dataclass
class FitData:
    """Data as `fit` was given it.

    Attributes:
        x: What Keras is to get as `x`; the rest is in `y` and `sample_weight`.
        y: Targets.
        sample_weight: Sample weights.
        source: How to read it, or why it cannot be read twice.
        arrays: The data as arrays, if it is arrays whose order the package can give.
    """

    x: Any
    y: Any = None
    sample_weight: Any = None
    source: Source | str = ""
    arrays: Batch | None = None


def training_data(
    x: Any,
    y: Any,
    sample_weight: Any,
    *,
    batch_size: int | None,
    shuffle: Any,
    steps_per_epoch: int | None,
    insist: bool,
) -> FitData:
    """Makes a source of `fit`'s training data.

    Args:
        x: As in `fit`.
        y: As in `fit`.
        sample_weight: As in `fit`.
        batch_size: As in `fit`.
        shuffle: As in `fit`.
        steps_per_epoch: As in `fit`; for validation data `validation_steps`.
        insist: Whether data whose values may differ is looked at: a generator loses nothing
            by it, but it is read.
    """
    data = FitData(x, y, sample_weight)
    arrays = as_arrays(x, y, sample_weight)
    if arrays is not None:
        if steps_per_epoch is not None or not isinstance(shuffle, bool):
            name = "steps_per_epoch" if steps_per_epoch is not None else f"shuffle={shuffle!r}"
            data.source = f"arrays with {name} have another order than the cache's"
            return data
        data.arrays = arrays
        data.source = array_source(arrays, batch_size or 32, shuffle=shuffle)
    elif isinstance(x, tf.data.Dataset):
        cardinality = int(x.cardinality())
        if cardinality == tf.data.INFINITE_CARDINALITY:
            data.source = "the data set has no end"
        elif steps_per_epoch not in (None, cardinality):
            data.source = "with steps_per_epoch an epoch is not the whole data set"
        else:
            data.source = dataset_source(x)
    elif isinstance(x, keras.utils.PyDataset):
        if x.num_batches is None:
            data.source = "the PyDataset has no end"
        elif steps_per_epoch not in (None, x.num_batches):
            data.source = "with steps_per_epoch an epoch is not the whole PyDataset"
        elif insist:
            data.source = py_dataset_source(x, shuffle=bool(shuffle))
        else:
            data.source = "a PyDataset may yield other values each time"
    elif isinstance(x, types.GeneratorType | Iterator):
        if steps_per_epoch is None:
            data.source = "a generator has no known length"
        elif insist:
            data.source, data.x = generator_source(x, steps_per_epoch)
        else:
            data.source = "a generator may yield other values each time"
    else:
        data.source = f"data of type {type(x).__name__} is neither plain arrays nor a data set"
    return data


def validation_data(
    given: Any, *, batch_size: int | None, steps: int | None, insist: bool
) -> FitData | None:
    """Makes a source of `fit`'s validation data.

    Args:
        given: As `validation_data` in `fit`.
        batch_size: Examples of a batch, where it is arrays.
        steps: As `validation_steps` in `fit`.
        insist: See `training_data`.
    """
    if given is None:
        return None
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(given)
    return training_data(
        x,
        y,
        sample_weight,
        batch_size=batch_size,
        shuffle=False,
        steps_per_epoch=steps,
        insist=insist,
    )
