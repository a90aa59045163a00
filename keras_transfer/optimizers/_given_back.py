"""What a plain optimizer has no place for: remembered beside it, until it is taken over again.

A plain Keras optimizer counts the steps of all variables together. One that was given back at
the end of a `fit` and trains on in the next should find each group's count as it was.
"""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_transfer.optimizers._clone import VariableState, path_of


@dataclasses.dataclass(frozen=True)
class Remembered:
    """What was true of a plain optimizer when it was given back.

    Attributes:
        iterations: Its steps then; with more of them it has trained in between.
        stage_start: Updates before the last stage.
        states: Steps and shared state of each variable, by path.
    """

    iterations: int
    stage_start: int
    states: Mapping[str, tuple[int, dict[str, np.ndarray]]]


_remembered: weakref.WeakKeyDictionary[Any, Remembered] = weakref.WeakKeyDictionary()


def remember(
    plain: keras.optimizers.Optimizer,
    variables: Sequence[keras.Variable],
    states: Sequence[VariableState | None],
    stage_start: int,
) -> None:
    """Remembers beside `plain` what its variables had before it was made."""
    kept = {
        path_of(variable): (state.steps, state.shared)
        for variable, state in zip(variables, states, strict=True)
        if state is not None
    }
    _remembered[plain] = Remembered(int(plain.iterations.numpy()), stage_start, kept)


def recall(
    plain: keras.optimizers.Optimizer,
    variables: Sequence[keras.Variable],
    states: Sequence[VariableState],
) -> tuple[list[VariableState], int | None]:
    """Returns the states with what was remembered, and where the last stage began.

    Where the optimizer has trained in between, its own count holds for all.
    """
    found = _remembered.get(plain)
    if found is None or found.iterations != int(plain.iterations.numpy()):
        return list(states), None
    recalled = []
    for variable, state in zip(variables, states, strict=True):
        steps, shared = found.states.get(path_of(variable), (state.steps, state.shared))
        recalled.append(dataclasses.replace(state, steps=steps, shared=shared))
    return recalled, found.stage_start
