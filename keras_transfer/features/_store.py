"""Where tables are kept: in memory, or in a directory of files that are checked when read back."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import pathlib
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from keras_transfer._checkpoint_files import sync_directory
from keras_transfer.features._table import Column, Table, as_numpy_dtype

FORMAT = 1
MANIFEST = "manifest.json"
CHUNK = 1 << 22


class CannotKeepError(ValueError):
    """Features turn out, while the pass runs, to be such that they cannot be kept."""


class TooLargeError(CannotKeepError):
    """Features do not fit into what a cache may hold."""


class DamagedEntryError(ValueError):
    """A stored entry is not what was written."""


class Writer:
    """Takes batches one after the other and makes a table of them.

    Args:
        dtypes: Type of each column, as the model gets it.
        kept_as: Type that a column is kept in, where it is another.
        whole_batches: Whether batches are kept whole.
    """

    def __init__(
        self, dtypes: Mapping[str, str], *, kept_as: Mapping[str, str], whole_batches: bool
    ) -> None:
        self.dtypes = dict(dtypes)
        self.kept_as = dict(kept_as)
        self.whole_batches = whole_batches
        self.nbytes = 0
        self.n_rows = 0
        self.batch_size: int | None = None

    def write(self, batch: Mapping[str, np.ndarray]) -> None:
        """Takes the arrays of a batch."""
        arrays = {name: self._convert(name, batch[name]) for name in self.dtypes}
        size = len(next(iter(arrays.values())))
        self.batch_size = self.batch_size or size
        self.nbytes += sum(array.nbytes for array in arrays.values())
        self._put(arrays)
        self.n_rows += 1 if self.whole_batches else size

    def _convert(self, name: str, array: np.ndarray) -> np.ndarray:
        kept_as = self._kept_dtype(name)
        if array.dtype == kept_as:
            return np.ascontiguousarray(array)
        with np.errstate(over="ignore"):
            converted = array.astype(kept_as)
        if not np.isfinite(converted.astype("float32")).all() and np.isfinite(array).all():
            raise ValueError(
                f"Features reach {np.abs(array).max():.3g}, which does not fit into {kept_as}."
                " Use FeatureCache(dtype='bfloat16'), which has the range of float32."
            )
        return converted

    def _kept_dtype(self, name: str) -> np.dtype[Any]:
        return as_numpy_dtype(self.kept_as.get(name, self.dtypes[name]))

    def _put(self, arrays: dict[str, np.ndarray]) -> None:
        raise NotImplementedError

    def finish(self, structure: Any) -> Table:
        """Returns what was written; `structure` holds the names of the columns."""
        raise NotImplementedError

    def discard(self) -> None:
        """Forgets what was written."""

    def _table(self, columns: dict[str, Column], structure: Any) -> Table:
        batch_size = None if self.whole_batches else self.batch_size
        return Table(columns, self.n_rows, batch_size, structure)


class MemoryWriter(Writer):
    """Keeps a table in memory.

    Args:
        most_rows: How many examples are expected; memory is taken only as it fills.
        **kwargs: See `Writer`.
    """

    def __init__(self, dtypes: Mapping[str, str], *, most_rows: int, **kwargs: Any) -> None:
        super().__init__(dtypes, **kwargs)
        self.most_rows = most_rows
        self._whole: dict[str, np.ndarray] = {}
        self._batches: dict[str, list[np.ndarray]] = {name: [] for name in self.dtypes}

    def _put(self, arrays: dict[str, np.ndarray]) -> None:
        for name, array in arrays.items():
            if self.whole_batches:
                self._batches[name].append(array)
                continue
            end = self.n_rows + len(array)
            if name not in self._whole:
                self._whole[name] = np.empty((self.most_rows, *array.shape[1:]), array.dtype)
            if end > len(self._whole[name]):
                # A map may make larger batches than the `batch` before it.
                grown = np.empty((2 * end, *array.shape[1:]), array.dtype)
                grown[: self.n_rows] = self._whole[name][: self.n_rows]
                self._whole[name] = grown
            self._whole[name][self.n_rows : end] = array

    def finish(self, structure: Any) -> Table:
        columns = {}
        for name, dtype in self.dtypes.items():
            values = self._batches[name] if self.whole_batches else self._whole[name][: self.n_rows]
            for array in values if isinstance(values, list) else [values]:
                array.flags.writeable = False  # as files are: what was handed out stays as it is
            columns[name] = Column(dtype, values)
        return self._table(columns, structure)


class DirectoryWriter(Writer):
    """Writes a table to files under a temporary name, and gives it its own when it is whole.

    Args:
        directory: Where entries lie; made if need be.
        name: Name of the entry.
        **kwargs: See `Writer`.
    """

    def __init__(
        self, dtypes: Mapping[str, str], *, directory: pathlib.Path, name: str, **kwargs: Any
    ) -> None:
        super().__init__(dtypes, **kwargs)
        self.directory = directory
        self.name = name
        self.path = directory / f".writing-{name}-{uuid.uuid4().hex}"
        with _space_on(directory):
            self.path.mkdir(parents=True)
        self._files = {
            column: open(self.path / f"{number}.bin", "wb")  # noqa: SIM115
            for number, column in enumerate(self.dtypes)
        }
        self._sums = {column: hashlib.sha256() for column in self.dtypes}
        self._shapes: dict[str, list[tuple[int, ...]]] = {column: [] for column in self.dtypes}

    def _put(self, arrays: dict[str, np.ndarray]) -> None:
        with _space_on(self.directory):
            for column, array in arrays.items():
                data = array.reshape(-1).view(np.uint8).data
                self._files[column].write(data)
                self._sums[column].update(data)
                self._shapes[column].append(array.shape)

    def finish(self, structure: Any) -> Table:
        with _space_on(self.directory):
            for file in self._files.values():
                file.flush()
                os.fsync(file.fileno())
                file.close()
            self._write_manifest(structure)
        final = self.directory / self.name
        try:
            os.rename(self.path, final)
        except OSError:
            # Another process has finished the same entry, and it is as good as this one.
            if not final.exists():
                raise
            self.discard()
        sync_directory(self.directory)
        return read_entry(self.directory, self.name)

    def discard(self) -> None:
        for file in self._files.values():
            with contextlib.suppress(OSError):  # what could not be flushed is thrown away
                file.close()
        shutil.rmtree(self.path, ignore_errors=True)

    def _write_manifest(self, structure: Any) -> None:
        columns = []
        for number, (column, dtype) in enumerate(self.dtypes.items()):
            shapes = self._shapes[column]
            if not self.whole_batches:
                shapes = [(self.n_rows, *shapes[0][1:])]
            columns.append(
                {
                    "name": column,
                    "dtype": dtype,
                    "kept_as": self._kept_dtype(column).name,
                    "file": f"{number}.bin",
                    "sha256": self._sums[column].hexdigest(),
                    "shapes": shapes,
                }
            )
        content = {
            "format": FORMAT,
            "name": self.name,
            "n_rows": self.n_rows,
            "batch_size": None if self.whole_batches else self.batch_size,
            "structure": _encode(structure),
            "columns": columns,
        }
        text = json.dumps(content)
        with open(self.path / MANIFEST, "w") as file:
            json.dump({"sha256": hashlib.sha256(text.encode()).hexdigest(), "content": text}, file)
            file.flush()
            os.fsync(file.fileno())
        sync_directory(self.path)


def read_entry(directory: pathlib.Path, name: str) -> Table:
    """Opens a stored table, memory-mapped, after checking every byte of it.

    Raises:
        FileNotFoundError: If there is no such entry.
        DamagedEntryError: If it is not whole, or not what was written.
    """
    path = directory / name
    if not path.is_dir():
        raise FileNotFoundError(path)
    content = _read_manifest(path)
    if content.get("format") != FORMAT or content.get("name") != name:
        raise DamagedEntryError(f"{path} was written by another version, or for other data")
    columns = {}
    for column in content["columns"]:
        columns[column["name"]] = _read_column(path, column, whole=content["batch_size"] is None)
    return Table(columns, content["n_rows"], content["batch_size"], _decode(content["structure"]))


def _read_manifest(path: pathlib.Path) -> dict[str, Any]:
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        text = manifest["content"]
        if hashlib.sha256(text.encode()).hexdigest() != manifest["sha256"]:
            raise DamagedEntryError(f"the checksum of {path / MANIFEST} does not agree")
        content: dict[str, Any] = json.loads(text)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, DamagedEntryError):
            raise
        raise DamagedEntryError(f"{path / MANIFEST} cannot be read ({error})") from error
    return content


def _read_column(path: pathlib.Path, column: dict[str, Any], *, whole: bool) -> Column:
    file = path / column["file"]
    dtype = as_numpy_dtype(column["kept_as"])
    shapes = [tuple(shape) for shape in column["shapes"]]
    expected = sum(int(np.prod(shape)) for shape in shapes) * dtype.itemsize
    if not file.is_file() or file.stat().st_size != expected:
        raise DamagedEntryError(f"{file} does not have its {expected:,} bytes")
    digest = hashlib.sha256()
    with open(file, "rb") as opened:
        while chunk := opened.read(CHUNK):
            digest.update(chunk)
    if digest.hexdigest() != column["sha256"]:
        raise DamagedEntryError(f"the checksum of {file} does not agree")
    # A file without bytes cannot be mapped.
    flat = np.memmap(file, np.uint8, "r") if expected else np.empty(0, np.uint8)
    values = flat.view(dtype)
    if not whole:
        return Column(column["dtype"], values.reshape(shapes[0]))
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes])
    batches = [
        values[end - int(np.prod(shape)) : end].reshape(shape)
        for end, shape in zip(ends, shapes, strict=True)
    ]
    return Column(column["dtype"], batches)


def remove_entry(directory: pathlib.Path, name: str) -> None:
    """Deletes an entry; first renamed, so that no other process finds half of it."""
    away = directory / f".removing-{name}-{uuid.uuid4().hex}"
    with contextlib.suppress(FileNotFoundError):  # another process was faster
        os.rename(directory / name, away)
    shutil.rmtree(away, ignore_errors=True)


@contextlib.contextmanager
def _space_on(directory: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise OSError(
                error.errno,
                f"Features cannot be written to {directory} ({error.strerror}). Give "
                "FeatureCache a directory in which files can be made",
            ) from error
        raise OSError(
            error.errno,
            f"The disk is full: features cannot be written to {directory}. Nothing half-written is "
            "left. Delete old entries (the directory may be emptied at any time), keep fewer "
            "boundaries, or use FeatureCache(dtype='float16')",
        ) from error


def _encode(structure: Any) -> Any:
    if isinstance(structure, Mapping):
        return {"dict": {str(name): _encode(value) for name, value in structure.items()}}
    if isinstance(structure, tuple):
        return {"tuple": [_encode(value) for value in structure]}
    if isinstance(structure, Sequence) and not isinstance(structure, str):
        return {"list": [_encode(value) for value in structure]}
    return structure


def _decode(structure: Any) -> Any:
    if not isinstance(structure, dict):
        return structure
    ((kind, value),) = structure.items()
    if kind == "dict":
        return {name: _decode(inner) for name, inner in value.items()}
    return (tuple if kind == "tuple" else list)(_decode(inner) for inner in value)
