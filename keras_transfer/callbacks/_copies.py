"""Copies of callbacks that leave behind what a run gave them."""

from __future__ import annotations

import copy
from typing import Any, Protocol, TypeVar

import keras


class _Resettable(Protocol):
    def _reset(self) -> None: ...


C = TypeVar("C", bound=_Resettable)


def copy_without_run(callback: C, memo: dict[int, Any]) -> C:
    """Returns a deep copy of a callback as it was before any `fit`.

    KerasTuner copies callbacks for each trial. A copy that held layers would unfreeze copies
    of the layers, so what a run produced, and its model, stay behind: all that `_reset` sets.
    """
    copied = type(callback).__new__(type(callback))
    memo[id(callback)] = copied
    keras.callbacks.Callback.__init__(copied)
    copied._reset()
    for name, value in vars(callback).items():
        if name not in vars(copied):
            setattr(copied, name, copy.deepcopy(value, memo))
    return copied
