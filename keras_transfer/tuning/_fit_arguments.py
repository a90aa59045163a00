"""What `search` was given, checked before a trial trains."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

from keras_transfer import _checks, _fit_checks, _keras_internals
from keras_transfer.features._sources import as_arrays
from keras_transfer.model import TransferModel


def named(args: Any, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of `fit` by name.

    Raises:
        TypeError: If `fit` has no such argument.
    """
    bound = inspect.signature(TransferModel.fit).bind(None, *args, **kwargs)
    return dict(list(bound.arguments.items())[1:])


def check_model(model: Any) -> None:
    """Checks what `build_model` returned.

    Raises:
        TypeError: If it is no `TransferModel`.
    """
    if isinstance(model, TransferModel):
        return
    what = f"a {type(model).__name__}" if model is not None else "nothing (a `return` is missing?)"
    raise TypeError(
        f"`build_model()` must return a `TransferModel`. It returned {what}. Wrap a backbone and "
        "a head: keras_transfer.TransferModel(backbone, head)."
    )


def check_strategy(model: Any, strategy: Any) -> None:
    """Checks that a model was built under the tuner's distribution strategy.

    Raises:
        ValueError: If it, or a part of it, was not.
    """
    if strategy is None:
        return
    outside = [
        weight.path
        for weight in model.weights
        if not strategy.extended.variable_created_in_scope(weight.value)
    ]
    if model.distribute_strategy is strategy and not outside:
        return
    what = f"{len(outside)} of its weights (such as {outside[0]!r})" if outside else "it"
    raise ValueError(
        f"The tuner has a {type(strategy).__name__}, and the model {model.name!r} was not built "
        f"under it: {what} was made outside of its scope. Make everything, the backbone too, in "
        "`build_model`, which is called in the scope."
    )


def check_data(arguments: Mapping[str, Any], objective: Any) -> None:
    """Checks that there is validation data for an objective on it.

    Raises:
        ValueError: If there is none.
    """
    if arguments.get("x") is None:
        raise ValueError("`search` needs training data: tuner.search(x, y, validation_data=...).")
    has_validation = arguments.get("validation_data") is not None
    if has_validation or arguments.get("validation_split"):
        return
    for name in names_of(objective):
        if name.startswith("val_"):
            raise ValueError(
                f"The objective is {name!r}, and there is no validation data. Pass "
                "validation_data=(x, y), a data set, or validation_split=0.2."
            )


def check_objective(model: Any, arguments: Mapping[str, Any], objective: Any) -> None:
    """Checks that the model reports what the search is to improve.

    Raises:
        ValueError: If it does not; the message names what it reports.
    """
    callbacks = _fit_checks.as_list(arguments.get("callbacks"))
    own = [c for c in callbacks if not _is_known(c)]
    names = reported_names(model, arguments)
    if names is None or own:
        return  # a callback of the user's may report it
    for name in names_of(objective):
        if name not in names:
            raise ValueError(
                f"The objective is {name!r}, and the model does not report it."
                f"{_checks.did_you_mean(name, names)} It reports {', '.join(map(repr, names))}. "
                "Add the metric in `compile`, or choose another objective."
            )


def reported_names(model: Any, arguments: Mapping[str, Any]) -> list[str] | None:
    """Returns what an epoch reports of a compiled model; `None` where data cannot be looked at."""
    batch = _first_batch(arguments)
    if batch is None:
        return None
    _keras_internals.build_metrics(model, batch)
    names = list(model.get_metrics_result())
    has_validation = arguments.get("validation_data") is not None
    if has_validation or arguments.get("validation_split"):
        names += [f"val_{name}" for name in names]
    return names


def _first_batch(arguments: Mapping[str, Any]) -> Any:
    x, y = arguments.get("x"), arguments.get("y")
    weight = arguments.get("sample_weight")
    if as_arrays(x, y, weight) is not None:
        given = [part for part in (x, y, weight) if part is not None]
        return tuple(keras.tree.map_structure(lambda a: a[:2], part) for part in given)
    if isinstance(x, tf.data.Dataset | keras.utils.PyDataset):
        return _fit_checks.first_batch(x)
    return None


def names_of(objective: Any) -> list[str]:
    """Returns the names of the metrics that an objective is made of."""
    several = getattr(objective, "name_to_direction", None)
    names = list(several) if several is not None else [objective.name]
    return [name for name in names if name != "default_objective"]


def _is_known(callback: keras.callbacks.Callback) -> bool:
    module = type(callback).__module__
    return module.split(".")[0] in ("keras", "keras_transfer", "keras_tuner", "tensorboard")
