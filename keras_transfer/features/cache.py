"""`FeatureCache`: runs frozen layers once and keeps what they return."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import uuid
import warnings
import weakref
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from keras_transfer import _checks
from keras_transfer.features import _fingerprint
from keras_transfer.features._entry import EntryPoint
from keras_transfer.features._order import EpochOrder, ordered_dataset
from keras_transfer.features._pass import FeaturePass
from keras_transfer.features._prefix import NotDeterministicError, Prefix
from keras_transfer.features._sources import Source, array_source, as_arrays, dataset_source
from keras_transfer.features._store import (
    DamagedEntryError,
    DirectoryWriter,
    MemoryWriter,
    Writer,
    read_entry,
    remove_entry,
)
from keras_transfer.features._table import Table
from keras_transfer.layers import PretrainedBackbone
from keras_transfer.layers._head_split import split_head

DTYPES = ("float16", "bfloat16", "float32")
DEFAULT_MAX_BYTES = 2 * 1024**3


class FeatureCache:
    """Keeps the features of frozen layers, so that these run once and not in every epoch.

    Pass it to `TransferModel.fit(cache_features=...)` to say where features are kept and how
    much room they may take, or to share them between runs and processes. (The default,
    `cache_features="auto"`, needs no object: it keeps features in memory until `fit` ends.)
    Use `features` to get them for something else: a linear probe with scikit-learn, or
    transferability scores.

    Features are found again by a fingerprint of the model up to the boundary (architecture,
    weights, BatchNorm policy, preprocessing, precision) and of the data: the bytes of arrays; a
    `tf.data.Dataset` is itself, within the process, and `key` names it across processes.
    What does not agree is never served. A cache takes it that layers treat the examples of
    a batch one by one, as Keras's own do in inference.

    Args:
        directory: Where to keep features on disk, memory-mapped when they are read, for
            later runs and other processes. `None` keeps them in memory, as long as this object
            lives. The directory holds one folder per entry (`manifest.json` and one file of raw
            numbers per tensor); all of it may be deleted at any time between runs.
        max_bytes: The most that features may take: in memory 2 GiB by default; in a directory
            the most that one pass may write, by default as much as there is room for.
        dtype: Type to keep floating-point features in: `"float16"` or `"bfloat16"` take half
            the room and move features by rounding; `None` keeps them as they are.
        key: Your name for the data, in the place of its bytes. Needed to find the features of a
            data set again in another process. Two sets of data under one name would be
            mixed up.
        fold_constants: Whether to fold the variables of the frozen layers into constants for
            the pass, which makes it faster and moves features by about 2e-5 of the largest.

    Raises:
        TypeError: If an argument has another type.
        ValueError: If `dtype` is unknown or `max_bytes` is not positive.

    Example:

    >>> import keras, numpy as np
    >>> import keras_transfer as ktf
    >>> backbone = keras.applications.MobileNetV2(
    ...     weights=None, include_top=False, input_shape=(32, 32, 3), alpha=0.35)
    >>> model = ktf.TransferModel(backbone, head=ktf.layers.ClassificationHead(num_classes=10))
    >>> cache = ktf.features.FeatureCache()
    >>> cache.features(model, np.ones((8, 32, 32, 3), "float32"), verbose=0).shape
    (8, 1280)
    """

    def __init__(
        self,
        directory: str | os.PathLike[str] | None = None,
        *,
        max_bytes: int | None = None,
        dtype: str | None = None,
        key: str | None = None,
        fold_constants: bool = False,
    ) -> None:
        if directory is not None and not isinstance(directory, str | os.PathLike):
            raise TypeError(f"`directory` must be a path. Received: directory={directory!r}")
        if max_bytes is not None:
            max_bytes = _checks.integer(max_bytes, "max_bytes", minimum=1)
        if dtype is not None:
            _checks.choice(dtype, "dtype", DTYPES)
        if key is not None and not isinstance(key, str):
            raise TypeError(f"`key` must be a string. Received: key={key!r}")
        self.directory = None if directory is None else pathlib.Path(directory)
        self.max_bytes = max_bytes
        self.dtype = dtype
        self.key = key
        self.fold_constants = bool(fold_constants)
        self._tables: dict[str, Table] = {}
        self._tokens: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()

    def __repr__(self) -> str:
        where = "memory" if self.directory is None else str(self.directory)
        return (
            f"<FeatureCache in {where}, {len(self._tables)} tables in use, {self.nbytes:,} bytes>"
        )

    @property
    def nbytes(self) -> int:
        """Size of what this object holds or has mapped, in bytes."""
        return sum(table.nbytes for table in self._tables.values())

    def clear(self) -> None:
        """Lets go of what this object holds in memory; a directory is left as it is."""
        self._tables.clear()

    def features(
        self,
        model: Any,
        data: Any,
        boundary: str | int = "pooled",
        *,
        batch_size: int = 32,
        verbose: int = 1,
    ) -> Any:
        """Returns the features of `data`, from the cache or from one pass over it.

        Args:
            model: A built `TransferModel` whose backbone is functional.
            data: Arrays of inputs, or a batched `tf.data.Dataset` whose order stays the same.
            boundary: Where to stop: `"pooled"` (after the head's pooling; after the backbone,
                where the head pools nothing), the name of a layer group (after that group),
                or the number of groups before the boundary.
            batch_size: Examples of a batch of the pass over arrays.
            verbose: 0 is silent, 1 shows a progress bar.

        Returns:
            For arrays a read-only array with one row per example (a dictionary of arrays where
            more than one tensor is alive at the boundary, or a mask). For a data set a
            `tf.data.Dataset` that has features in the place of inputs, with its targets.

        Raises:
            TypeError: If model or data is of another kind.
            ValueError: If the boundary is unknown, the backbone is not functional or random, or
                the data set has no known length or yields other values each time.
        """
        if not isinstance(getattr(model, "backbone", None), PretrainedBackbone):
            raise TypeError(
                f"`model` must be a `TransferModel`. Received: model={model!r}. Wrap a backbone "
                "and a head: TransferModel(backbone, head)."
            )
        point = _point_at(model, boundary)
        arrays = as_arrays(data, None, None)
        if arrays is not None:
            source = array_source(arrays, batch_size, shuffle=False)
        elif isinstance(data, tf.data.Dataset):
            source = dataset_source(data)
        else:
            raise TypeError(
                "`data` must be arrays of numbers or a `tf.data.Dataset`. Received: "
                f"{type(data).__name__}"
            )
        if source.n_batches is None:
            raise ValueError("The data set has no known length, so its features cannot be kept.")
        if source.differs:
            raise ValueError(f"Features of this data set cannot be kept: {source.reason}.")
        prefix = Prefix(model, [point], fold_constants=self.fold_constants)
        try:
            table = self.fill(prefix, source, verbose=verbose)[point]
        except NotDeterministicError as error:
            raise ValueError(f"Features cannot be kept: {error}.") from error
        if arrays is None:
            return _as_dataset(table, point)
        found = {name: column.read(slice(None)) for name, column in table.columns.items()}
        return found[point.key] if len(found) == 1 else found

    def fill(
        self, prefix: Prefix, source: Source, *, role: str = "given", verbose: Any = 1
    ) -> dict[EntryPoint, Table]:
        """Returns a table of features for each entry point, from the cache or from one pass.

        Args:
            prefix: The frozen layers, up to each entry point that is wanted.
            source: The data.
            role: What the data is called in the progress bar, and beside a `key`.
            verbose: 0 is silent, 1 shows a progress bar.
        """
        data = self._data_fingerprint(source, role)
        inputs = source.signature
        names = {point: self._name(prefix, point, inputs, data) for point in prefix.points}
        found: dict[EntryPoint, Table] = {}
        for point, name in names.items():
            table = self._find(name)
            if table is not None:
                found[point] = table
        missing = [point for point in prefix.points if point not in found]
        if missing:
            if found:
                prefix = Prefix(prefix.model, missing, fold_constants=self.fold_constants)
            self._make_room(prefix, source, keep={names[point] for point in found})
            one_pass = FeaturePass(
                prefix,
                source,
                lambda point, *given: self._writer(names[point], source, *given),
                kept_as=self.dtype,
                max_bytes=self._room_left(),
                role=role,
                verbose=verbose,
            )
            found.update(one_pass.run())
        if source.arrays is not None:
            # Batches of arrays are cut anew, and an earlier pass may have had others.
            size = source.batch_size
            found = {p: dataclasses.replace(table, batch_size=size) for p, table in found.items()}
        for point, table in found.items():
            self._tables.pop(names[point], None)  # what is used goes to the end
            self._tables[names[point]] = table
        return found

    @property
    def room(self) -> int | None:
        """The most bytes that features may take; `None` where only the disk limits them."""
        if self.max_bytes is None and self.directory is None:
            return DEFAULT_MAX_BYTES
        return self.max_bytes

    def _writer(
        self,
        name: str,
        source: Source,
        dtypes: dict[str, str],
        kept_as: dict[str, str],
        whole_batches: bool,
    ) -> Writer:
        if self.directory is None:
            rows = source.n_examples or 0
            return MemoryWriter(
                dtypes, most_rows=rows, kept_as=kept_as, whole_batches=whole_batches
            )
        return DirectoryWriter(
            dtypes,
            directory=self.directory,
            name=name,
            kept_as=kept_as,
            whole_batches=whole_batches,
        )

    def _room_left(self) -> int | None:
        if self.directory is not None or self.room is None:
            return self.room  # of a directory it bounds what one pass writes
        return self.room - self.nbytes

    def _make_room(self, prefix: Prefix, source: Source, keep: set[str]) -> None:
        """Lets go of what was not used for longest, until the new tables fit in memory."""
        if self.directory is not None or self.room is None:
            return
        sizes = predicted_bytes(prefix.signature(source.signature), source, self.dtype)
        needed = sum(sizes.values()) if sizes else 0
        needed += len(prefix.points) * source.target_bytes
        for name in [name for name in self._tables if name not in keep]:
            if self.nbytes + needed <= self.room:
                return
            del self._tables[name]

    def _find(self, name: str) -> Table | None:
        if self.directory is None:
            return self._tables.get(name)
        # Also where it was opened before: what lies in a directory may change at any time.
        try:
            return read_entry(self.directory, name)
        except FileNotFoundError:
            return None
        except DamagedEntryError as error:
            warnings.warn(f"Cached features are damaged and are made anew: {error}.", stacklevel=4)
            remove_entry(self.directory, name)
            return None

    def _name(self, prefix: Prefix, point: EntryPoint, inputs: Any, data: str) -> str:
        model = _fingerprint.prefix_fingerprint(prefix, point, inputs)
        return _short(model, data, str(self.dtype), point.key)

    def _data_fingerprint(self, source: Source, role: str) -> str:
        if self.key is not None:
            return _short(
                "key", self.key, role, str(source.signature), str(source.n_batches), source.share
            )
        if source.arrays is not None:
            return _fingerprint.data_fingerprint(source.arrays[0])
        if source.identity is None:
            return uuid.uuid4().hex  # a generator is used up: it is never the same again
        # A data set is itself, as long as it lives in this process.
        return self._tokens.setdefault(source.identity, uuid.uuid4().hex)


class PassingCache(FeatureCache):
    """Keeps features in memory for one `fit`, which knows itself when they are outdated."""

    def _find(self, name: str) -> Table | None:
        return None  # asked for again, it is because layers before it have trained since

    def _name(self, prefix: Prefix, point: EntryPoint, inputs: Any, data: str) -> str:
        return f"{data}/{point.key}"

    def _data_fingerprint(self, source: Source, role: str) -> str:
        return role


def predicted_bytes(
    fields: Mapping[str, tf.TensorSpec], source: Source, kept_as: str | None
) -> dict[str, int] | None:
    """Returns how many bytes each field of features will take, or `None` if not known."""
    if source.n_examples is None:
        return None
    sizes = {}
    for name, spec in fields.items():
        if None in spec.shape[1:]:
            return None
        narrowed = kept_as is not None and spec.dtype.is_floating
        itemsize = tf.as_dtype(kept_as).size if narrowed else spec.dtype.size
        sizes[name] = int(np.prod(spec.shape[1:])) * itemsize * source.n_examples
    return sizes


def _point_at(model: Any, boundary: str | int) -> EntryPoint:
    backbone = model.backbone
    groups = backbone.layer_groups
    if not backbone.is_functional:
        raise ValueError(
            f"{backbone.model.name!r} is not a functional model, so it has no boundaries to stop "
            "at."
        )
    if boundary == "pooled":
        return EntryPoint(len(groups), pooled=split_head(model.head) is not None)
    if isinstance(boundary, str):
        names = [*groups.aliases(), *groups.names, "pooled"]
        if boundary not in names:
            raise ValueError(
                f"There is no layer group {boundary!r}.{_checks.did_you_mean(boundary, names)} "
                f"`boundary` must be 'pooled' or one of {', '.join(map(repr, groups.names))}."
            )
        boundary = groups.names.index(groups.aliases().get(boundary, boundary)) + 1
    start = _checks.integer(boundary, "boundary", minimum=1)
    if start > len(groups):
        raise ValueError(f"The backbone has {len(groups)} layer groups. Received: boundary={start}")
    return EntryPoint(start)


def _as_dataset(table: Table, point: EntryPoint) -> tf.data.Dataset:
    dataset = ordered_dataset(
        table.read,
        table.signature,
        count=table.n_rows,
        batch_size=table.batch_size,
        order=EpochOrder(None),
    )

    def simplify(features: Any, *others: Any) -> Any:
        plain = features[point.key] if len(features) == 1 else features
        return (plain, *others) if others else plain

    return dataset.map(simplify)


def _short(*parts: str) -> str:
    return _fingerprint.text_fingerprint(*parts)[:40]
