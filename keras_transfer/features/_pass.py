"""The pass: runs the frozen layers over the data once and writes down what they return."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_transfer.features._entry import EntryPoint
from keras_transfer.features._prefix import Prefix
from keras_transfer.features._sources import Source
from keras_transfer.features._store import CannotKeepError, TooLargeError, Writer
from keras_transfer.features._table import Table, named_structure

# Makes a writer from types, types to keep them in, and whether batches are kept whole.
MakeWriter = Callable[[EntryPoint, dict[str, str], dict[str, str], bool], Writer]


class _IrregularBatchesError(Exception):
    """A batch has another shape than the first, or one in the middle another size."""


@dataclasses.dataclass
class FeaturePass:
    """Reads data once and makes a table for each entry point.

    Args:
        prefix: The frozen layers, up to each entry point to fill.
        source: The data. Targets and sample weights of anything but arrays are kept in
            each table: the next reading may be in another order.
        make_writer: Makes the writer of an entry point's table.
        kept_as: Type to keep floating-point features in; `None` for their own.
        max_bytes: The most that all tables together may take.
        role: What the data is called in the progress bar.
        verbose: 0 is silent, 1 shows a progress bar.
    """

    prefix: Prefix
    source: Source
    make_writer: MakeWriter
    kept_as: str | None
    max_bytes: int | None
    role: str
    verbose: Any

    def run(self) -> dict[EntryPoint, Table]:
        """Runs the pass and returns the tables.

        Raises:
            TooLargeError: If the tables take more than `max_bytes`.
            CannotKeepError: If features of arrays have another shape in each batch.
            NotDeterministicError: If the frozen layers are not deterministic.
            ValueError: If the data yields another number of batches than it said.
        """
        self.fields = self.prefix.signature(self.source.signature)
        try:
            return self._run(whole_batches=self._needs_whole_batches)
        except _IrregularBatchesError:
            if self.source.arrays is not None:
                # Their order is that of the uncached run, example by example.
                raise CannotKeepError("the features have another shape in each batch") from None
            # Batches of other sizes than the first cannot be cut anew from examples.
            return self._run(whole_batches=True)

    @property
    def _needs_whole_batches(self) -> bool:
        """Whether it is known beforehand that examples cannot be cut out of their batches."""
        if self.source.arrays is not None:
            return False
        static = all(None not in spec.shape[1:] for spec in self.fields.values())
        return self.source.keeps_batches or self.source.n_examples is None or not static

    def _run(self, *, whole_batches: bool) -> dict[EntryPoint, Table]:
        run = self.prefix.function(self.source.signature)
        progress = _Progress(self.role, self.source.n_batches, self.verbose)
        writers: dict[EntryPoint, Writer] = {}
        structures: dict[EntryPoint, Any] = {}
        shapes: dict[str, tuple[int, ...]] = {}
        batches = 0
        try:
            for batch in read_ahead(self.source.read()):
                features = run(keras.tree.map_structure(tf.convert_to_tensor, batch[0]))
                structure, targets = self._targets(batch)
                if not writers:
                    writers, structures = self._open(features, structure, targets, whole_batches)
                batches += 1
                if not whole_batches:
                    is_last = batches == self.source.n_batches
                    self._check_regular({**features, **targets}, shapes, is_last=is_last)
                size = self._write(writers, features, targets)
                progress.update(batches, size, self._nbytes(writers))
            if batches != self.source.n_batches:
                raise ValueError(
                    f"The data was said to have {self.source.n_batches} batches and yielded "
                    f"{batches}. Mend its length, or pass cache_features=False."
                )
            return {point: w.finish(structures[point]) for point, w in writers.items()}
        except BaseException:
            for writer in writers.values():
                writer.discard()
            raise

    def _targets(self, batch: tuple[Any, ...]) -> tuple[tuple[Any, ...], dict[str, np.ndarray]]:
        if self.source.arrays is not None:
            return (), {}
        structure, named = named_structure(batch[1:], "target")
        return tuple(structure), {name: np.asarray(value) for name, value in named.items()}

    def _open(
        self,
        features: dict[str, Any],
        structure: tuple[Any, ...],
        targets: dict[str, np.ndarray],
        whole_batches: bool,
    ) -> tuple[dict[EntryPoint, Writer], dict[EntryPoint, Any]]:
        writers, structures = {}, {}
        for point in self.prefix.points:
            names = [name for name in features if point.owns(name)]
            dtypes = {name: self.fields[name].dtype.name for name in names}
            dtypes.update({name: str(value.dtype) for name, value in targets.items()})
            floats = [name for name in names if self.fields[name].dtype.is_floating]
            kept_as = dict.fromkeys(floats, self.kept_as) if self.kept_as is not None else {}
            writers[point] = self.make_writer(point, dtypes, kept_as, whole_batches)
            structures[point] = ({name: name for name in names}, *structure)
        return writers, structures

    def _write(
        self,
        writers: dict[EntryPoint, Writer],
        features: dict[str, Any],
        targets: dict[str, np.ndarray],
    ) -> int:
        arrays = {name: tensor.numpy() for name, tensor in features.items()}
        for writer in writers.values():
            writer.write({**arrays, **targets})
        if self.max_bytes is not None and self._nbytes(writers) > self.max_bytes:
            raise TooLargeError(f"the features take more than {self.max_bytes:,} bytes")
        return len(next(iter(arrays.values())))

    @staticmethod
    def _check_regular(
        batch: dict[str, Any], first: dict[str, tuple[int, ...]], *, is_last: bool
    ) -> None:
        """Checks shapes against those of the first batch, which it keeps in `first`."""
        for name, tensor in batch.items():
            size, *shape = tensor.shape
            wanted, *wanted_shape = first.setdefault(name, tuple(tensor.shape))
            fits = size == wanted or (is_last and size < wanted)
            if not fits or shape != wanted_shape:
                raise _IrregularBatchesError

    @staticmethod
    def _nbytes(writers: dict[EntryPoint, Writer]) -> int:
        return sum(writer.nbytes for writer in writers.values())


def read_ahead(batches: Iterator[Any]) -> Iterator[Any]:
    """Yields batches while the next one is already being read, in a thread of its own."""
    end = object()
    with futures.ThreadPoolExecutor(max_workers=1) as reader:
        following = reader.submit(next, batches, end)
        while (batch := following.result()) is not end:
            following = reader.submit(next, batches, end)
            yield batch


class _Progress:
    """Shows batches, examples per second and bytes while a pass runs."""

    def __init__(self, role: str, n_batches: int | None, verbose: Any) -> None:
        self.bar: Any = None
        if verbose:
            print(f"Caching the features of the {role} data")
            self.bar = keras.utils.Progbar(
                n_batches,
                verbose=verbose if verbose in (1, 2) else 1,  # "auto" means a bar
                stateful_metrics=["examples/s", "MB"],
                unit_name="batch",
            )
        self.started = time.perf_counter()
        self.examples = 0

    def update(self, batches: int, size: int, nbytes: int) -> None:
        self.examples += size
        if self.bar is not None:
            rate = self.examples / max(1e-9, time.perf_counter() - self.started)
            self.bar.update(batches, values=[("examples/s", rate), ("MB", nbytes / 1e6)])
