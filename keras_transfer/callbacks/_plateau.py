"""Watches a stage's metric, as `keras.callbacks.EarlyStopping` does for a whole run."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import keras

from keras_transfer import _checks, _keras_internals, _workers
from keras_transfer.plan import Stage


def is_maximized(stage: Stage, model: keras.Model) -> bool:
    """Whether a stage's metric is better when higher: as the stage says, or as Keras knows.

    Raises:
        ValueError: If the stage leaves it to Keras, and Keras does not know.
    """
    if stage.mode != "auto":
        return stage.mode == "max"
    name = stage.monitor.removeprefix("val_")
    if name == "loss" or name.endswith("_loss"):
        return False
    direction = _keras_internals.metric_direction(model, name)
    if direction is None:
        raise ValueError(
            f"Stage {stage.name!r} monitors {stage.monitor!r}, and Keras does not know whether it "
            "is better when higher or lower. Write Stage(mode='max') or Stage(mode='min')."
        )
    return direction == "up"


@dataclasses.dataclass
class Plateau:
    """Best value of a stage's metric and the epochs since.

    Args:
        stage: A stage with `patience`.
        best: Best value so far; `None` before the first finite one.
        wait: Epochs since the best one.
    """

    stage: Stage
    best: float | None = None
    wait: int = 0

    def update(self, logs: dict[str, Any], model: keras.Model) -> bool:
        """Takes an epoch's logs and returns whether the metric improved.

        Args:
            logs: What `fit` reports at the end of an epoch.
            model: The model that is trained; its metrics know whether higher is better.

        Raises:
            ValueError: If the logs lack the metric, or its direction is not known.
        """
        monitor = self.stage.monitor
        if monitor not in logs:
            known = sorted(name for name in logs if "/" not in name)
            remedy = "Add it to `compile(metrics=...)`"
            if monitor.startswith("val_") and not any(name.startswith("val_") for name in known):
                remedy = "Pass `validation_data`, and leave `validation_freq` at 1"
            raise ValueError(
                f"Stage {self.stage.name!r} monitors {monitor!r}, which `fit` did not report for "
                f"this epoch.{_checks.did_you_mean(monitor, known)} Available: "
                f"{', '.join(known)}. {remedy}, or monitor another metric."
            )
        # All workers have to come to the same end.
        value = _workers.of_chief(model.distribute_strategy, float(logs[monitor]))
        sign = 1.0 if is_maximized(self.stage, model) else -1.0
        improved = math.isfinite(value) and (
            self.best is None or sign * (value - self.best) > self.stage.min_delta
        )
        if improved:
            self.best, self.wait = value, 0
        else:
            self.wait += 1
        return improved

    @property
    def is_over(self) -> bool:
        """Whether the metric has not improved for `patience` epochs."""
        return self.stage.patience is not None and 0 < self.wait >= self.stage.patience

    def __str__(self) -> str:
        epochs = "1 epoch" if self.wait == 1 else f"{self.wait} epochs"
        if self.best is None:
            return f"{self.stage.monitor} has not been a finite number for {epochs}"
        return f"{self.stage.monitor} has not improved on {self.best:.4g} for {epochs}"
