"""Keeps two searches from being mixed up in one project directory."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

from keras_transfer.tuning._state_files import read_state, write_state
from keras_transfer.tuning.search_space import SearchSpace

FILE = "search_space.json"


def check_same_search(
    project_dir: pathlib.Path, search_space: SearchSpace, groups: Sequence[str]
) -> None:
    """Writes what a project searches, or compares it with what was written.

    A tuner that finds a project takes the ranges from there, without a word.

    Raises:
        ValueError: If the project belongs to another search space, or to another model.
    """
    here: dict[str, Any] = {"search_space": search_space.get_config(), "groups": list(groups)}
    path = project_dir / FILE
    try:
        there = read_state(path)
    except FileNotFoundError:
        write_state(path, here)
        return
    found = []
    for name, part in here["search_space"].items():
        before = there["search_space"].get(name)
        if before != part:
            found.append(f"`{name}` was {before} and is {part}")
    if there["groups"] != here["groups"]:
        found.append(f"the model had the layer groups {there['groups']} and has {here['groups']}")
    if found:
        raise ValueError(
            f"{project_dir} belongs to another search: {'; '.join(found)}. Give this search a "
            "`project_name` of its own, or pass overwrite=True."
        )
