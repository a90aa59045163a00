"""Checkpoints on disk: whole or not there, checked when read back, the previous ones kept."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import pathlib
import re
import uuid
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

MAGIC = b"keras_transfer checkpoint 1\n"
# The header is the magic, the SHA-256 of all that follows in hexadecimal, and a line break.
HEADER_LENGTH = len(MAGIC) + 64 + 1
RECORD = "record"


class DamagedCheckpointError(ValueError):
    """A checkpoint file is not what was written."""


class CheckpointFiles:
    """The checkpoints of one training in a directory of its own.

    A file is written under a temporary name, synced, and renamed, so that a file with a
    checkpoint's name is whole, or was damaged later, which its checksum tells.

    Args:
        directory: Where the files lie; made when the first is written.
        keep: How many of the newest are kept.
    """

    def __init__(self, directory: str | os.PathLike[str], keep: int) -> None:
        self.directory = pathlib.Path(directory)
        self.keep = keep

    def write(self, state: Mapping[str, Any]) -> pathlib.Path:
        """Writes a checkpoint and deletes those that are too many.

        Args:
            state: Nested mappings and sequences of plain data and arrays.

        Raises:
            OSError: If the file cannot be written; earlier checkpoints are left as they are.
        """
        try:
            return self._write(state)
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            raise OSError(
                error.errno,
                f"A checkpoint cannot be written to {self.directory}"
                f"{': the disk is full' if full else f' ({error.strerror})'}. Earlier ones are "
                "as they were. Give ResumableTraining a directory with room for "
                f"{self.keep + 1} checkpoints",
            ) from error

    def _write(self, state: Mapping[str, Any]) -> pathlib.Path:
        self.directory.mkdir(parents=True, exist_ok=True)
        numbers = [number for number, _ in self._found()]
        path = self.directory / f"checkpoint-{max(numbers, default=0) + 1:08d}"
        temporary = self.directory / f".writing-{path.name}-{uuid.uuid4().hex}"
        try:
            with open(temporary, "wb") as file:
                _write_state(file, state)
                file.flush()
                os.fsync(file.fileno())
            os.rename(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        sync_directory(self.directory)
        for _, old in self._found()[: -self.keep]:
            old.unlink(missing_ok=True)
        return path

    def newest(self) -> tuple[dict[str, Any], pathlib.Path] | None:
        """Reads the newest checkpoint that is whole, or `None` where there never was one.

        Files that are damaged are renamed, and a warning names them and the one that was
        read in their place.

        Raises:
            ValueError: If there are checkpoints, and none is whole.
        """
        damaged: list[str] = []
        paths: list[pathlib.Path] = []
        for _, path in reversed(self._found()):
            try:
                state = read_state(path)
            except DamagedCheckpointError as error:
                damaged.append(str(error))
                paths.append(path)
                continue
            if damaged:
                warnings.warn(
                    f"Training goes on from {path}, an earlier checkpoint: {'; '.join(damaged)}.",
                    stacklevel=2,
                )
            # Else the next checkpoints would crowd out the whole one before they are as many.
            for one in paths:
                os.replace(one, one.with_name(f"{one.name}.damaged"))
            return state, path
        if damaged:
            raise ValueError(
                f"No checkpoint in {self.directory} is whole: {'; '.join(damaged)}. Put back a "
                "copy, or delete the directory to train anew."
            )
        return None

    def remove_half_written(self) -> None:
        """Deletes what a killed process left of a checkpoint that it was writing."""
        for path in self.directory.glob(".writing-checkpoint-*"):
            path.unlink(missing_ok=True)

    def _found(self) -> list[tuple[int, pathlib.Path]]:
        """Returns numbers and paths of the checkpoints, the newest last."""
        if not self.directory.is_dir():
            return []
        names = ((re.fullmatch(r"checkpoint-(\d+)", p.name), p) for p in self.directory.iterdir())
        return sorted((int(match[1]), path) for match, path in names if match)


def _write_state(file: Any, state: Mapping[str, Any]) -> None:
    arrays: dict[str, np.ndarray] = {}
    record = json.dumps(_encode(state, arrays))
    arrays[RECORD] = np.frombuffer(record.encode(), np.uint8)
    file.write(MAGIC + b"0" * 64 + b"\n")
    # An archive counts its places from its own beginning.
    contents = io.BytesIO()
    np.savez(contents, allow_pickle=False, **arrays)
    file.write(contents.getbuffer())
    digest = hashlib.sha256(contents.getbuffer()).hexdigest()
    file.seek(len(MAGIC))
    file.write(digest.encode())


def read_state(path: pathlib.Path) -> dict[str, Any]:
    """Reads what `CheckpointFiles.write` wrote.

    Raises:
        DamagedCheckpointError: If the file is not whole, or of another kind.
    """
    try:
        contents = path.read_bytes()
    except OSError as error:
        raise DamagedCheckpointError(f"{path} cannot be read ({error.strerror})") from error
    if not contents.startswith(MAGIC) or len(contents) < HEADER_LENGTH:
        raise DamagedCheckpointError(
            f"{path} is empty" if not contents else f"{path} is no checkpoint of this version"
        )
    body = memoryview(contents)[HEADER_LENGTH:]
    digest = contents[len(MAGIC) : HEADER_LENGTH - 1]
    if hashlib.sha256(body).hexdigest().encode() != digest:
        raise DamagedCheckpointError(f"the checksum of {path} does not agree")
    with np.load(io.BytesIO(body), allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    record = json.loads(arrays.pop(RECORD).tobytes())
    state: dict[str, Any] = _decode(record, arrays)
    return state


def _encode(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    """Returns JSON data for a nested value; its arrays go into `arrays`."""
    if isinstance(value, np.ndarray):
        name = f"a{len(arrays)}"
        # An archive knows NumPy's own types only, and bfloat16 is none of them.
        arrays[name] = np.frombuffer(np.ascontiguousarray(value).tobytes(), np.uint8)
        return {"array": name, "dtype": value.dtype.name, "shape": list(value.shape)}
    if isinstance(value, np.generic):
        return _encode(value.item(), arrays)
    if isinstance(value, Mapping):
        return {"dict": [[key, _encode(one, arrays)] for key, one in value.items()]}
    if isinstance(value, tuple):
        return {"tuple": [_encode(one, arrays) for one in value]}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [_encode(one, arrays) for one in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(
        f"A checkpoint holds numbers, strings, arrays, lists, tuples and dicts. Received: {value!r}"
    )


def _decode(value: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    if isinstance(value, list):
        return [_decode(one, arrays) for one in value]
    if not isinstance(value, dict):
        return value
    if "array" in value:
        flat = arrays[value["array"]].view(np.dtype(value["dtype"]))
        return flat.reshape(value["shape"])
    if "dict" in value:
        return {key: _decode(one, arrays) for key, one in value["dict"]}
    return tuple(_decode(one, arrays) for one in value["tuple"])


def sync_directory(path: pathlib.Path) -> None:
    """Makes sure that names given to files in a directory outlast a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
