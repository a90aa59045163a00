"""Whether a checkpoint belongs to the run that finds it: what made both, compared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from keras_transfer import _resolved_plan
from keras_transfer.optimizers import find_discriminative
from keras_transfer.plan import CarriesPlan

# What training itself changes, or what a checkpoint holds the state of anyway.
NOT_COMPARED = ("trainable", "trains", "seed")


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
        "config": _model_facts(model),
        "compile": _compile_facts(model),
        "optimizer": _optimizer_facts(model.optimizer),
        "data": {"steps_per_epoch": steps},
    }
    if carrier is None:
        facts["plan"] = None
        facts["trainable variables"] = [v.path for v in model.trainable_variables]
        return facts
    facts["plan"] = carrier.plan.get_config()
    policy = getattr(carrier, "batch_norm", "freeze")
    resolved = _resolved_plan.resolve(
        model,
        carrier.plan,
        getattr(carrier, "groups", None),
        getattr(carrier, "head", None),
        policy,
    )
    facts["layer groups"] = {g.name: [v.path for v in g.variables] for g in resolved.groups}
    if not _resolved_plan.is_transfer_model(model):  # whose config says it
        facts["batch_norm"] = policy
    return facts


def _model_facts(model: keras.Model) -> Any:
    try:
        config = model.get_config()
    except NotImplementedError:  # a subclass that cannot be saved as a whole
        return type(model).__name__
    return _plain(config)


def _compile_facts(model: keras.Model) -> dict[str, Any]:
    try:
        config = model.get_compile_config() or {}
    except (TypeError, ValueError):  # a loss or metric that cannot be saved: compared by class
        return {"loss": _plain(model.loss)}
    names = ("loss", "loss_weights", "metrics", "weighted_metrics")
    return {name: _plain(config.get(name)) for name in names}


def _optimizer_facts(optimizer: keras.optimizers.Optimizer) -> dict[str, Any]:
    within = getattr(optimizer, "inner_optimizer", optimizer)
    found = find_discriminative(optimizer)
    if found is not None:
        config = found.plain_config()
    else:
        config = {"class": type(within).__name__, **within.get_config()}
    config.pop("name", None)
    config["loss scaling"] = within is not optimizer
    if int(within.iterations.numpy()) > 0:
        # It has trained in this process: the rate is what training made of it.
        config.pop("learning_rate")
    return {str(key): _plain(value) for key, value in config.items()}


def _plain(value: Any) -> Any:
    """Returns plain data for a part of a config: schedules by their own."""
    if isinstance(value, keras.optimizers.schedules.LearningRateSchedule):
        return {"class": type(value).__name__, **_plain(value.get_config())}
    if isinstance(value, Mapping):
        return {str(k): _plain(one) for k, one in value.items() if k not in NOT_COMPARED}
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
