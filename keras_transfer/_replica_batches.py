"""Whether batches have to be cut so that replicas share them evenly."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import keras
import tensorflow as tf

from keras_transfer import _strategy_checks
from keras_transfer._replica_shares import loss_reduction
from keras_transfer.features._batch_sizes import batch_sizes
from keras_transfer.features._fit_data import FitData


def sizes_of_batches(data: FitData, batch_size: int | None) -> tuple[int | None, int | None]:
    """Returns the size of the batches and that of the last one, where they are known."""
    if data.arrays is not None:
        size = batch_size or 32
        rows = len(keras.tree.flatten(data.arrays)[0])
        return min(size, rows), rows % size or size
    if isinstance(data.x, tf.data.Dataset):
        return batch_sizes(data.x)
    return None, None


def must_cut_batches(
    model: Any,
    trained: Iterable[keras.Variable],
    data: FitData,
    sizes: tuple[int | None, int | None],
) -> bool:
    """Returns whether batches are cut so that replicas share them evenly; warns if they are.

    Args:
        model: The model, compiled, on two or more replicas.
        trained: The variables that train at any time of the training.
        data: The training data.
        sizes: As `sizes_of_batches` returns them.

    Raises:
        ValueError: Batches must be cut and cannot be.
    """
    replicas = model.distribute_strategy.num_replicas_in_sync
    if _strategy_checks.moves_local_statistics(model, trained):
        why = "BatchNormalization trains on the statistics of each replica's share"
        instead = "make BatchNormalization with synchronized=True"
    elif loss_reduction(model) is None:
        why = "the losses are reduced in several ways"
        instead = "give all losses one `reduction`"
    elif model.run_eagerly and sizes[1] is not None and sizes[1] < replicas:
        why = "with run_eagerly=True no replica can step without examples"
        instead = "leave `run_eagerly` at False"
    else:
        return False
    if data.arrays is None and not isinstance(data.x, tf.data.Dataset):
        raise ValueError(
            f"On {replicas} replicas batches have to be shared evenly, because {why}, which "
            f"{type(data.x).__name__} does not promise. Pass a `tf.data.Dataset` batched "
            f"with drop_remainder=True, or {instead}."
        )
    if all(size is not None and size % replicas == 0 for size in sizes):
        return False
    if sizes[0] is not None and sizes[0] < replicas:
        raise ValueError(
            f"Batches of {sizes[0]} examples are too small for {replicas} replicas, because "
            f"{why}. Use a larger batch."
        )
    warnings.warn(
        f"Each batch is cut to a multiple of {replicas} examples, the number of replicas, "
        f"because {why}. Choose a batch size that {replicas} divides, and "
        "drop_remainder=True, to say yourself what is left out.",
        stacklevel=2,
    )
    return True
