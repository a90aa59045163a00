"""Several worker processes (`MultiWorkerMirroredStrategy`): who is who, and what all agree on.

All workers have to take the same decisions at the same step: one that stops, or makes another
step than the others, leaves them waiting in a collective. Whatever could differ between
processes is therefore asked of all, with TensorFlow's own collectives. On one process these
functions return what they are given.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_transfer import _keras_internals


def number_and_count(strategy: tf.distribute.Strategy) -> tuple[int, int]:
    """Returns this worker's number, from 0 for the chief, and how many workers there are."""
    if not _keras_internals.is_multi_worker(strategy):
        return 0, 1
    resolver = strategy.cluster_resolver
    spec = resolver.cluster_spec().as_dict()
    before = len(spec.get("chief", [])) if resolver.task_type == "worker" else 0
    return before + int(resolver.task_id), len(spec.get("chief", [])) + len(spec.get("worker", []))


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether this process is the one that writes."""
    return number_and_count(strategy)[0] == 0


def of_chief(strategy: tf.distribute.Strategy, value: float) -> float:
    """Returns the chief's value in all workers. All have to call it, in the same order."""
    if not _keras_internals.is_multi_worker(strategy):
        return value
    return _sum(strategy, value if is_chief(strategy) else 0.0)


def any_of(strategy: tf.distribute.Strategy, flag: bool) -> bool:
    """Returns whether the flag is set in any worker. All have to call it, in the same order."""
    if not _keras_internals.is_multi_worker(strategy):
        return flag
    return _sum(strategy, float(flag)) > 0


def _sum(strategy: tf.distribute.Strategy, value: float) -> float:
    return float(_summing(strategy)(tf.constant(value, tf.float64)))


_WORDS = 2**19  # 4 MiB go over the wire at a time


def add_up(strategy: tf.distribute.Strategy, values: np.ndarray) -> None:
    """Fills an array in place with what the other workers have in it, where it holds zeros.

    Each row must be zero in all workers but one. Bits are kept, whatever the type. All workers
    have to call it, with arrays of one shape.
    """
    flat = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    padded = np.zeros(-(-flat.size // 8) * 8, np.uint8)
    padded[: flat.size] = flat
    words = padded.view(np.int64)
    for begin in range(0, words.size, _WORDS):
        chunk = words[begin : begin + _WORDS]
        words[begin : begin + _WORDS] = _summing(strategy)(tf.constant(chunk)).numpy()
    values[...] = padded[: flat.size].view(values.dtype).reshape(values.shape)


@functools.cache
def _summing(strategy: tf.distribute.Strategy) -> Callable[[Any], Any]:
    """Returns a function that sums over workers; each counts once, however many replicas it has."""
    first = len(strategy.extended.worker_devices) * number_and_count(strategy)[0]

    def on_replica(value: Any) -> Any:
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        return tf.where(tf.equal(replica, first), value, tf.zeros_like(value))

    def over_workers(value: Any) -> Any:
        values = strategy.run(on_replica, args=(value,))
        return strategy.reduce(tf.distribute.ReduceOp.SUM, values, axis=None)

    summing: Callable[[Any], Any] = tf.function(over_workers, autograph=False)
    return summing


# These write wherever they are; several processes abort each other, or write over each other.
_WRITERS = (
    keras.callbacks.BackupAndRestore,
    keras.callbacks.CSVLogger,
    keras.callbacks.ModelCheckpoint,
    keras.callbacks.TensorBoard,
)


def check_writers(strategy: tf.distribute.Strategy, callbacks: Any) -> None:
    """Checks that no callback writes from other workers than the chief.

    Args:
        strategy: The model's strategy.
        callbacks: All callbacks of `fit` in this worker.

    Raises:
        ValueError: In all workers, if one has such a callback.
    """
    if not _keras_internals.is_multi_worker(strategy):
        return
    found = [type(c).__name__ for c in callbacks if isinstance(c, _WRITERS)]
    refused = found if not is_chief(strategy) else [n for n in found if n == "BackupAndRestore"]
    if any_of(strategy, bool(refused)):
        names = ", ".join(f"`{name}`" for name in refused) or "another worker's callback"
        raise ValueError(
            f"Only the chief may write, and {names} writes from every worker: they would abort "
            "each other or write over each other's files. To go on after a crash, use "
            "`keras_transfer.callbacks.ResumableTraining` in all workers, which writes from the "
            "chief alone. To keep models or logs, add the others where "
            "`keras_transfer.distribute.is_chief(strategy)`."
        )
