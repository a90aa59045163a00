"""Watches a stage's metric, as `keras.callbacks.EarlyStopping` does for a whole run."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from keras_transfer.plan import Stage

MAXIMIZED = ("acc", "auc", "precision", "recall", "f1", "iou", "r2", "_top_")


def mode_of(stage: Stage) -> str:
    """Returns `"min"` or `"max"`: the stage's own, or what the metric's name says."""
    if stage.mode != "auto":
        return stage.mode
    name = stage.monitor.removeprefix("val_").lower()
    return "max" if any(word in name for word in MAXIMIZED) else "min"


@dataclasses.dataclass
class Plateau:
    """Best value of a stage's metric and the epochs since.

    Args:
        stage: A stage with `patience`.
        best: Best value so far; infinitely bad before the first epoch.
        wait: Epochs since the best one.
    """

    stage: Stage
    best: float | None = None
    wait: int = 0

    def update(self, logs: dict[str, Any]) -> bool:
        """Takes an epoch's logs and returns whether the metric improved.

        Raises:
            ValueError: If the logs lack the metric.
        """
        if self.stage.monitor not in logs:
            known = ", ".join(sorted(name for name in logs if "/" not in name))
            raise ValueError(
                f"Stage {self.stage.name!r} monitors {self.stage.monitor!r}, which `fit` does not "
                f"report. Available: {known}. Pass `validation_data`, or monitor another metric."
            )
        value = float(logs[self.stage.monitor])
        sign = 1.0 if mode_of(self.stage) == "max" else -1.0
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
