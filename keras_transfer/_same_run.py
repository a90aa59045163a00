"""Whether a checkpoint belongs to the run that finds it: what made both, compared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from keras_transfer.optimizers import find_discriminative
from keras_transfer.plan import CarriesPlan


def facts_of(model: keras.Model, carrier: CarriesPlan | None, steps: int | None) -> dict[str, Any]:
    """Returns what makes a run this run, as plain data; to be asked before it trains.

    Args:
        model: The model, built and compiled.
        carrier: The callback that carries a plan, if there is one.
        steps: Steps of an epoch, where they are known.
    """
    facts: dict[str, Any] = {
        "model": {
            variable.path: f"{tuple(variable.shape)} {variable.dtype}" for variable in model.weights
        },
        "optimizer": _optimizer_facts(model.optimizer),
        "data": {"steps_per_epoch": steps},
    }
    if carrier is None:
        facts["plan"] = None
        facts["trainable variables"] = [v.path for v in model.trainable_variables]
    else:
        facts["plan"] = carrier.plan.get_config()
    return facts


def _optimizer_facts(optimizer: keras.optimizers.Optimizer) -> dict[str, Any]:
    within = getattr(optimizer, "inner_optimizer", optimizer)
    found = find_discriminative(optimizer)
    if found is not None:
        config = found.plain_config()
    else:
        config = {"class": type(within).__name__, **within.get_config()}
    config.pop("name", None)
    if int(within.iterations.numpy()) > 0:
        # It has trained in this process: the rate is what training made of it.
        config.pop("learning_rate")
    return {str(key): _plain(value) for key, value in config.items()}


def _plain(value: Any) -> Any:
    """Returns plain data for a part of a config: schedules by their own."""
    if isinstance(value, keras.optimizers.schedules.LearningRateSchedule):
        return {"class": type(value).__name__, **_plain(value.get_config())}
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return type(value).__name__


def differences(saved: Any, now: Any, where: str = "") -> list[str]:
    """Returns in words where two values of `facts_of` differ."""
    if isinstance(saved, Mapping) and isinstance(now, Mapping):
        found = []
        for key in [*saved, *(k for k in now if k not in saved)]:
            place = f"{where}.{key}" if where else str(key)
            if place == "optimizer.learning_rate" and (key not in now or key not in saved):
                continue
            if key not in now:
                found.append(f"{place} is in the checkpoint only")
            elif key not in saved:
                found.append(f"{place} is not in the checkpoint")
            else:
                found += differences(saved[key], now[key], place)
        return found
    if isinstance(saved, list | tuple) and isinstance(now, list | tuple) and len(saved) == len(now):
        return [
            line
            for number, (a, b) in enumerate(zip(saved, now, strict=True))
            for line in differences(a, b, f"{where}[{number}]")
        ]
    if isinstance(saved, list | tuple) and isinstance(now, list | tuple):
        return [f"{where} has {len(saved)} entries in the checkpoint and {len(now)} here"]
    if saved == now or (saved != saved and now != now):
        return []
    return [f"{where} is {_short(saved)} in the checkpoint and {_short(now)} here"]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
