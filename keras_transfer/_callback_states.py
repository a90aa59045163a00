"""What the callbacks of a training have changed since it began, kept and put back."""

from __future__ import annotations

import collections
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import keras

from keras_transfer import _keras_internals

# Called with `get_state()` and `set_state(state)`: those of this package, and a user's own.
GETTER, SETTER = "get_state", "set_state"


def own_methods(
    callback: keras.callbacks.Callback,
) -> tuple[Callable[[], Any], Callable[[Any], None]] | None:
    """Returns a callback's `get_state` and `set_state`, if it has both."""
    getter, setter = getattr(callback, GETTER, None), getattr(callback, SETTER, None)
    return (getter, setter) if callable(getter) and callable(setter) else None


def names_without_state(callbacks: Iterable[keras.callbacks.Callback]) -> list[str]:
    """Returns the classes of callbacks whose state is not known, wholly or in part."""
    unknown = [
        type(callback).__name__
        for callback in callbacks
        if own_methods(callback) is None and not _keras_internals.is_callback_of_keras(callback)
    ]
    return list(dict.fromkeys(unknown))


def get_states(callbacks: Iterable[keras.callbacks.Callback]) -> dict[str, Any]:
    """Returns the state of each callback that has any, by class and number."""
    states = {}
    for name, callback in _named(callbacks):
        methods = own_methods(callback)
        state = methods[0]() if methods else _state_of_keras(callback)
        if state:
            states[name] = state
    return states


def set_states(callbacks: Iterable[keras.callbacks.Callback], states: Mapping[str, Any]) -> None:
    """Gives callbacks what `get_states` returned.

    Raises:
        ValueError: If the state of a callback would be lost, since there is none like it.
    """
    named = dict(_named(callbacks))
    lost = sorted(states.keys() - named.keys())
    if lost:
        raise ValueError(
            f"The checkpoint holds the state of {', '.join(lost)}, and `fit` was given no such "
            f"callback. Received: {', '.join(named) or 'none'}. Pass the callbacks of the run that "
            "wrote it."
        )
    for name, state in states.items():
        methods = own_methods(named[name])
        if methods:
            methods[1](state)
        else:
            for attribute, value in state.items():
                if attribute != "csv_bytes":
                    setattr(named[name], attribute, value)


def prepare_csv_loggers(
    callbacks: Iterable[keras.callbacks.Callback], states: Mapping[str, Any]
) -> None:
    """Makes each `CSVLogger` append to its file, which is cut to where it was.

    To be called before training begins, where the logger would empty it.
    """
    for name, callback in _named(callbacks):
        size = states.get(name, {}).get("csv_bytes") if name in states else None
        if not isinstance(callback, keras.callbacks.CSVLogger) or size is None:
            continue
        if os.path.exists(callback.filename):
            with open(callback.filename, "r+b") as file:
                file.truncate(size)
            callback.append = True


def _state_of_keras(callback: keras.callbacks.Callback) -> dict[str, Any] | None:
    state = _keras_internals.callback_state(callback)
    if isinstance(callback, keras.callbacks.CSVLogger) and state is not None:
        has_file = os.path.exists(callback.filename)
        state = {**state, "csv_bytes": os.path.getsize(callback.filename) if has_file else 0}
    return state


def _named(
    callbacks: Iterable[keras.callbacks.Callback],
) -> Iterator[tuple[str, keras.callbacks.Callback]]:
    """Yields callbacks with their class's name; of several of a class, the second is `name#2`."""
    seen: collections.Counter[str] = collections.Counter()
    for callback in callbacks:
        kind = type(callback).__name__
        seen[kind] += 1
        yield (kind if seen[kind] == 1 else f"{kind}#{seen[kind]}"), callback
