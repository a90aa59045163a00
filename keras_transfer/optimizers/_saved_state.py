"""How a discriminative optimizer's state lies in a Keras weights file: by variable path.

Keras itself numbers an optimizer's variables, so a file that crosses a stage boundary
loses all state. Here a manifest (JSON as bytes) says which variables have state, with how
many updates and in which layer group, and the arrays carry the variable's path in their
name.
"""

from __future__ import annotations

import collections
import dataclasses
import json
from collections.abc import Iterable
from typing import Any

import numpy as np

from keras_transfer.optimizers._clone import VariableState, path_of

MANIFEST = "manifest"
FORMAT = 1


@dataclasses.dataclass
class SavedState:
    """A discriminative optimizer's whole state, by variable name (see `unique_names`).

    Args:
        optimizer: Class name of the optimizer that was made discriminative.
        iterations: Steps so far, for all groups together.
        stage_start: Optimizer updates before the current stage.
        learning_rate: Base rate, where it is not a schedule.
        groups: Names of the variables of each layer group; `None` if there are no groups.
        multipliers: Rate multiplier of each group.
        states: State of each variable that has any.
    """

    optimizer: str
    iterations: int
    stage_start: int
    learning_rate: float | None
    groups: dict[str, list[str]] | None
    multipliers: dict[str, float]
    states: dict[str, VariableState]


def unique_names(variables: Iterable[Any]) -> list[str]:
    """Names variables by path; of several with one path, the second is `path#2`.

    Args:
        variables: The variables in an order that does not depend on the stage.
    """
    seen: collections.Counter[str] = collections.Counter()
    names = []
    for variable in variables:
        path = path_of(variable)
        seen[path] += 1
        names.append(path if seen[path] == 1 else f"{path}#{seen[path]}")
    return names


def _key(name: str, kind: str) -> str:
    # A slash would open a group inside an HDF5 file.
    return f"{name.replace('/', '|')}:{kind}"


def write(saved: SavedState, store: Any) -> None:
    """Writes the state into a Keras store (a mapping of names to arrays)."""
    manifest = dataclasses.asdict(
        dataclasses.replace(saved, states={})  # arrays do not go into the JSON
    )
    manifest["format"] = FORMAT
    for name, state in saved.states.items():
        manifest["states"][name] = {
            "steps": state.steps,
            "slots": sorted(state.slots),
            "shared": sorted(state.shared),
            "average": state.average is not None,
            "accumulator": state.accumulator is not None,
            "start": state.start is not None,
        }
        for slot, value in state.slots.items():
            store[_key(name, f"slot:{slot}")] = value
        for slot, value in state.shared.items():
            store[_key(name, f"shared:{slot}")] = value
        if state.average is not None:
            store[_key(name, "average")] = state.average
        if state.accumulator is not None:
            store[_key(name, "accumulator")] = state.accumulator
        if state.start is not None:
            store[_key(name, "start")] = state.start
    store[MANIFEST] = np.frombuffer(json.dumps(manifest).encode(), "uint8").copy()


def read(store: Any) -> SavedState:
    """Reads what `write` wrote.

    Raises:
        ValueError: If the record is of a newer format.
    """
    manifest = json.loads(np.asarray(store[MANIFEST], "uint8").tobytes().decode())
    if manifest["format"] > FORMAT:
        raise ValueError(
            f"The saved optimizer state has format {manifest['format']}; this version of "
            f"keras_transfer reads up to {FORMAT}. Upgrade keras_transfer."
        )
    states = {}
    for name, entry in manifest["states"].items():

        def array(kind: str, name: str = name) -> np.ndarray:
            return np.array(store[_key(name, kind)])

        states[name] = VariableState(
            steps=entry["steps"],
            slots={slot: array(f"slot:{slot}") for slot in entry["slots"]},
            shared={slot: array(f"shared:{slot}") for slot in entry["shared"]},
            average=array("average") if entry["average"] else None,
            accumulator=array("accumulator") if entry["accumulator"] else None,
            # Files of the first version have none.
            start=array("start") if entry.get("start") else None,
        )
    return SavedState(
        optimizer=manifest["optimizer"],
        iterations=manifest["iterations"],
        stage_start=manifest["stage_start"],
        learning_rate=manifest["learning_rate"],
        groups=manifest["groups"],
        multipliers=manifest["multipliers"],
        states=states,
    )
