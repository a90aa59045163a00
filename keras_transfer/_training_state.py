"""All that a step of training changes in a model and its optimizer, as arrays by name."""

from __future__ import annotations

import collections
import re
from collections.abc import Iterable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_transfer import _keras_internals
from keras_transfer._model_state import raw_variables
from keras_transfer.optimizers import find_discriminative

Arrays = dict[str, np.ndarray]


def model_arrays(model: keras.Model) -> Arrays:
    """Returns copies of all variables but metrics: weights, statistics, seed generators.

    Also each `tf.Variable` that a layer holds, which Keras does not list. Where replicas have
    values of their own (BatchNorm's statistics), those of each.
    """
    return {name: _copy(variable) for name, variable in _model_variables(model).items()}


def set_model_arrays(model: keras.Model, arrays: Mapping[str, np.ndarray]) -> None:
    """Assigns what `model_arrays` returned.

    Raises:
        ValueError: If the model has not the same variables.
    """
    _assign(_model_variables(model), arrays, "the model")


def metric_arrays(model: keras.Model) -> Arrays:
    """Returns copies of what the metrics have summed up since the epoch began."""
    return {name: _copy(variable) for name, variable in _metric_variables(model).items()}


def set_metric_arrays(model: keras.Model, arrays: Mapping[str, np.ndarray]) -> None:
    """Assigns what `metric_arrays` returned, within an epoch: its beginning clears them.

    Raises:
        ValueError: If the model has not the same metrics.
    """
    _assign(_metric_variables(model), arrays, "the metrics")


def optimizer_arrays(model: keras.Model) -> dict[str, Arrays]:
    """Returns the state of a model's optimizer; a discriminative one's by variable path."""
    optimizer = model.optimizer
    found = find_discriminative(optimizer)
    if found is None:
        _build(model)
        return {"plain": {n: _copy(v) for n, v in named_variables(optimizer.variables).items()}}
    state: dict[str, Arrays] = {"groups": {}}
    found.save_own_variables(state["groups"])
    if optimizer is not found:  # a `LossScaleOptimizer` around it
        state["loss_scale"] = {}
        optimizer.save_own_variables(state["loss_scale"])
    return state


def set_optimizer_arrays(model: keras.Model, state: Mapping[str, Mapping[str, Any]]) -> None:
    """Gives a model's optimizer what `optimizer_arrays` returned; slots are made for it.

    The train function has to be traced anew afterwards.

    Raises:
        ValueError: If the state is of another optimizer, or of other variables.
    """
    optimizer = model.optimizer
    found = find_discriminative(optimizer)
    if (found is None) != ("plain" in state):
        raise ValueError(
            "The checkpoint holds the state of "
            f"{'a plain' if 'plain' in state else 'a discriminative'} optimizer, and the model's "
            f"is {type(optimizer).__name__!r}. Train with the callbacks of the run that wrote it."
        )
    with model.distribute_strategy.scope():
        if found is None:
            _build(model)
            _assign(named_variables(optimizer.variables), state["plain"], "the optimizer")
            return
        if optimizer is not found:
            _set_loss_scale(model, state["loss_scale"])
        found.load_own_variables(dict(state["groups"]))


def _set_loss_scale(model: keras.Model, saved: Mapping[str, Any]) -> None:
    optimizer = model.optimizer
    own: Arrays = {}
    optimizer.save_own_variables(own)
    if len(own) < len(saved):  # the scale is made at the first step
        optimizer.build(model.trainable_variables)
    if optimizer.built:
        optimizer.load_own_variables(dict(saved))


def _build(model: keras.Model) -> None:
    """Makes the slots that a plain optimizer would make at its first step."""
    if not model.optimizer.built:
        with model.distribute_strategy.scope():
            model.optimizer.build(model.trainable_variables)


def _model_variables(model: keras.Model) -> dict[str, Any]:
    """Returns the TensorFlow variables behind a model by name, one for each replica."""
    found: list[Any] = list(model.variables)
    for layer in _keras_internals.flatten_layers(model):
        found.extend(raw_variables(layer))
    metrics = {id(variable.value) for variable in model.metrics_variables}
    known: dict[int, Any] = {}
    for variable in found:
        key = id(_tensorflow_variable(variable))
        if key not in metrics:
            known.setdefault(key, variable)
    return _copies_on_replicas(model, known.values())


def _metric_variables(model: keras.Model) -> dict[str, Any]:
    return _copies_on_replicas(model, model.metrics_variables)


def _copies_on_replicas(model: keras.Model, variables: Iterable[Any]) -> dict[str, Any]:
    local = model.distribute_strategy.experimental_local_results
    named = {}
    for name, variable in named_variables(variables).items():
        copies = local(_tensorflow_variable(variable))
        for replica, copy in enumerate(copies):
            named[name if len(copies) == 1 else f"{name}@{replica}"] = copy
    return named


# Keras numbers these through the process; a model that is built again has others.
_NUMBERED = re.compile(r"\b(seed_generator)_\d+(?=/)")


def named_variables(variables: Iterable[Any]) -> dict[str, Any]:
    """Names variables by path; of several with one path, the second is `path#2`."""
    seen: collections.Counter[str] = collections.Counter()
    named = {}
    for variable in variables:
        path = _NUMBERED.sub(r"\1", str(getattr(variable, "path", variable.name)))
        seen[path] += 1
        named[path if seen[path] == 1 else f"{path}#{seen[path]}"] = variable
    return named


def _tensorflow_variable(variable: Any) -> Any:
    return variable.value if isinstance(variable, keras.Variable) else variable


def _copy(variable: Any) -> np.ndarray:
    # On a CPU, `numpy()` may show the variable's own memory.
    return np.array(tf.convert_to_tensor(_tensorflow_variable(variable)).numpy(), copy=True)


def _assign(variables: Mapping[str, Any], arrays: Mapping[str, np.ndarray], whose: str) -> None:
    if variables.keys() != arrays.keys():
        only_there = sorted(arrays.keys() - variables.keys())
        only_here = sorted(variables.keys() - arrays.keys())
        raise ValueError(
            f"The checkpoint does not fit {whose}. Variables that only the checkpoint has: "
            f"{_few(only_there)}; that only {whose} has: {_few(only_here)}."
        )
    for name, variable in variables.items():
        variable.assign(arrays[name])


def _few(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more if names else "none"
