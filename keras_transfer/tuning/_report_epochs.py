"""Tells the oracle of each epoch, and ends the trial where it says so."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras

Report = Callable[[int, dict[str, float]], bool]


class ReportEpochs(keras.callbacks.Callback):
    """Reports the numbers of each epoch, and stops the training where the answer is no.

    Args:
        report: Takes the epoch and its numbers, and returns whether to go on.
    """

    def __init__(self, report: Report) -> None:
        super().__init__()
        self.report = report

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if not self.report(epoch, numbers_of(logs or {})):
            self.model.stop_training = True

    def get_state(self) -> dict[str, Any]:
        """Returns nothing: there is nothing to keep."""
        return {}

    def set_state(self, state: dict[str, Any]) -> None:
        """Puts nothing back.

        Args:
            state: What `get_state` returned.
        """


def numbers_of(logs: dict[str, Any]) -> dict[str, float]:
    """Returns what of an epoch's logs KerasTuner may take for metrics.

    The rate of a group that is frozen is not a number.
    """
    return {
        name: float(value)
        for name, value in logs.items()
        if not name.startswith("learning_rate/") and math.isfinite(value)
    }
