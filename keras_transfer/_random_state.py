"""Random numbers that a training draws from generators which the whole process shares."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np

from keras_transfer import _keras_internals


def get_state() -> dict[str, Any]:
    """Returns where the shared generators of Python, NumPy, Keras and TensorFlow are.

    Generators that layers hold themselves are part of the model's state.
    """
    version, numbers, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state()
    shared = _keras_internals.shared_generators()
    return {
        "python": [version, np.array(numbers, "uint64"), gauss],
        "numpy": [kind, np.array(keys), position, has_gauss, cached],
        "shared": {name: np.array(state.numpy(), copy=True) for name, state in shared.items()},
    }


def set_state(state: Mapping[str, Any]) -> None:
    """Puts the generators back to where `get_state` was asked."""
    # Making one draws a seed from Python's, whose turn comes after.
    shared = _keras_internals.shared_generators(make=state["shared"])
    for name, value in state["shared"].items():
        shared[name].assign(value)
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(int(n) for n in numbers), gauss))
    np.random.set_state(tuple(state["numpy"]))
