"""What runs are compared by: a metric on test data, over seeds."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import keras

from keras_transfer import _checks, _keras_internals
from keras_transfer._task_data import Part, head_of, reading


def checked_seeds(seeds: Any) -> list[int]:
    """Returns the seeds that `seeds` stands for: their number, or themselves.

    Raises:
        TypeError: If it is neither.
        ValueError: If there is none, or one comes twice.
    """
    if isinstance(seeds, str) or not isinstance(seeds, Iterable):
        return list(range(_checks.integer(seeds, "seeds", minimum=1)))
    checked = [_checks.integer(seed, "seeds", minimum=0) for seed in seeds]
    if not checked or len(set(checked)) < len(checked):
        raise ValueError(
            "`seeds` must be a number of seeds, or different whole numbers: a seed that comes "
            f"twice is no second run. Received: seeds={checked}"
        )
    return checked


def find_metric(model: keras.Model, test: Part, metric: str | None) -> str:
    """Returns the metric to compare by: the one asked for, the first compiled one, or the loss.

    Raises:
        ValueError: If the model reports no such metric.
    """
    batch = head_of(test)
    if batch is not None:
        _keras_internals.build_metrics(model, batch)
    names = ["loss"]
    for one in model.metrics:
        names += [inner.name for inner in getattr(one, "metrics", None) or [one]]
    names = list(dict.fromkeys(names))
    if metric is None:
        return names[1] if len(names) > 1 else "loss"
    return _checks.choice(metric, "metric", names)


def find_mode(model: keras.Model, metric: str, mode: str) -> str:
    """Returns whether a metric is better when higher (`"max"`) or lower (`"min"`).

    Raises:
        ValueError: If `mode` is `"auto"` and Keras does not know.
    """
    if mode != "auto":
        return mode
    if metric == "loss" or metric.endswith("_loss"):
        return "min"
    direction = _keras_internals.metric_direction(model, metric)
    if direction is None:
        raise ValueError(
            f"Keras does not know whether {metric!r} is better when higher or lower. Pass "
            "mode='max' or mode='min'."
        )
    return "max" if direction == "up" else "min"


def score_on(model: keras.Model, test: Part, metric: str, batch_size: int, what: str) -> float:
    """Returns a trained model's score.

    Args:
        model: The model.
        test: The test data.
        metric: Name of the metric.
        batch_size: Examples per batch, where the data is arrays.
        what: The run, to begin a message with.

    Raises:
        ValueError: If the score is not finite.
    """
    logs = model.evaluate(**reading(test, batch_size), verbose=0, return_dict=True)
    score = float(logs[metric])
    if not math.isfinite(score):
        raise ValueError(
            f"{what} ended in {metric}={score}. Look for inputs that were scaled wrongly, or lower "
            "the learning rates."
        )
    return score
