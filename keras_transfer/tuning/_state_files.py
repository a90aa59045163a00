"""Small files of plain data: whole or not there, checked when read back, the last copy kept.

They are JSON as KerasTuner writes it, with a checksum as one more key, so that plain KerasTuner
reads them as well.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pathlib
import uuid
import warnings
from collections.abc import Mapping
from typing import Any

from keras_transfer._checkpoint_files import sync_directory

CHECKSUM = "sha256"


class DamagedStateError(ValueError):
    """A state file and its copy are damaged, or neither is there any more."""


def write_state(path: pathlib.Path, state: Mapping[str, Any]) -> None:
    """Writes a state file and its copy.

    Args:
        path: The file.
        state: A mapping that JSON can hold.
    """
    body = json.dumps(dict(state))
    text = json.dumps({**json.loads(body), CHECKSUM: _digest(json.loads(body))})
    path.parent.mkdir(parents=True, exist_ok=True)
    # One after the other: at any moment at least one of them is whole.
    _write(path, text)
    _write(copy_of(path), text)
    sync_directory(path.parent)


def read_state(path: pathlib.Path) -> dict[str, Any]:
    """Reads a state file, or its copy where the file is damaged; a warning says so.

    Raises:
        FileNotFoundError: If neither is there.
        DamagedStateError: If none is whole.
    """
    state = _read(path)
    if state is not None:
        return state
    copy = copy_of(path)
    state = _read(copy)
    if state is not None:
        if path.exists():
            warnings.warn(
                f"{path} is damaged. The search goes on from the last whole copy of it.",
                stacklevel=3,
            )
        write_state(path, state)
        return state
    if not path.exists() and not copy.exists():
        raise FileNotFoundError(path)
    raise DamagedStateError(f"{path} is damaged, and so is its copy")


def copy_of(path: pathlib.Path) -> pathlib.Path:
    """Returns where the copy of a state file lies."""
    return path.with_name(f"{path.name}.copy")


def _read(path: pathlib.Path) -> dict[str, Any] | None:
    """Returns a file's state, or `None` where it is not whole."""
    try:
        state = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    if not isinstance(state, dict):
        return None
    checksum = state.pop(CHECKSUM, None)
    # Plain KerasTuner writes none; what it wrote is whole if it is JSON.
    return state if checksum in (None, _digest(state)) else None


def _write(path: pathlib.Path, text: str) -> None:
    temporary = _temporary(path)
    try:
        with open(temporary, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()


def _temporary(path: pathlib.Path) -> pathlib.Path:
    return path.with_name(f".writing-{path.name}-{uuid.uuid4().hex}")


def _digest(state: Any) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()
