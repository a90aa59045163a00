"""Numbers that are none: losses that diverge, and columns of rates that do not exist."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import keras
import keras_tuner

from keras_transfer.plan import UnfreezingPlan


class StopWhenNotFinite(keras.callbacks.Callback):
    """Ends a trial as failed, with the reason, after an epoch with a number that is none.

    KerasTuner would go on, and then say of the trial no more than that it failed.

    Args:
        plan: The trial's plan, for the name of the stage.
        names: What has to be finite besides the losses: what the search is to improve.
    """

    def __init__(self, plan: UnfreezingPlan, names: Sequence[str] = ()) -> None:
        super().__init__()
        self.plan = plan
        self.names = tuple(dict.fromkeys(["loss", "val_loss", *names]))

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        logs = logs or {}
        for name in self.names:
            if name in logs and not math.isfinite(logs[name]):
                stage = self.plan.stages[int(logs["stage"])]
                rate = "" if stage.peak_lr is None else f", peak_lr={stage.peak_lr:.2g}"
                raise keras_tuner.errors.FailedTrialError(
                    f"{name} is {logs[name]} after epoch {epoch + 1} (stage {stage.name!r}{rate})."
                )

    def get_state(self) -> dict[str, Any]:
        """Returns nothing: there is nothing to keep."""
        return {}

    def set_state(self, state: dict[str, Any]) -> None:
        """Puts nothing back.

        Args:
            state: What `get_state` returned.
        """


def reported(history: keras.callbacks.History) -> keras.callbacks.History:
    """Returns a copy of a history without what KerasTuner would take for metrics.

    The rate of a group that is frozen is not a number, of which KerasTuner takes the least.
    """
    kept = copy.copy(history)
    kept.history = {
        name: values
        for name, values in history.history.items()
        if not name.startswith("learning_rate/")
    }
    return kept
