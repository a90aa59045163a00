"""JSON files that are whole or not there, and checked when they are read back."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import uuid
from typing import Any

from keras_transfer._checkpoint_files import sync_directory


def write_json(path: pathlib.Path, content: Any) -> None:
    """Writes plain data with its checksum, in the place of what the file held before.

    Args:
        path: The file; its directory is made if needed.
        content: Nested dictionaries and lists of plain values.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, indent=1)
    whole = json.dumps({"sha256": _digest(text)}) + "\n" + text
    temporary = path.with_name(f".writing-{path.name}-{uuid.uuid4().hex}")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(whole)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_directory(path.parent)


def read_json(path: pathlib.Path, remedy: str) -> Any:
    """Reads what `write_json` wrote, or returns `None` where there is no such file.

    Args:
        path: The file.
        remedy: What to do where it is damaged, to end the message with.

    Raises:
        ValueError: If the file is not what was written.
    """
    try:
        whole = path.read_bytes()
    except FileNotFoundError:
        return None
    first, _, rest = whole.partition(b"\n")
    try:
        text = rest.decode("utf-8")
        if json.loads(first)["sha256"] == _digest(text):
            return json.loads(text)
    except (ValueError, KeyError, TypeError):  # no JSON, no text, or of another shape
        pass
    raise ValueError(f"{path} is damaged: its checksum does not agree. {remedy}")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
