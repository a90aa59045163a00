"""Which stage a trial was in when its best weights were kept."""

from __future__ import annotations

import dataclasses
import math
import pathlib
from typing import Any

import keras

from keras_transfer import _resolved_plan, _trainability
from keras_transfer.plan import UnfreezingPlan
from keras_transfer.tuning._state_files import read_state, write_state
from keras_transfer.tuning._trial import Trial

FILE = "fine_tuning.json"


@dataclasses.dataclass(frozen=True)
class BestEpoch:
    """What a trial's best weights belong to.

    Attributes:
        plan: The plan that ran.
        stage: Index of the stage.
        epoch: The epoch, counted from 0.
    """

    plan: UnfreezingPlan
    stage: int
    epoch: int

    def apply_to(self, model: Any) -> None:
        """Sets the flags of a model as they were in the stage."""
        stage = _resolved_plan.resolve(model, self.plan).stages[self.stage]
        _trainability.set_flags(model, stage.variables, stage.still)


def read_best_epoch(directory: pathlib.Path) -> BestEpoch | None:
    """Reads the record in a trial's directory, or `None` where there is none."""
    try:
        state = read_state(directory / FILE)
    except FileNotFoundError:
        return None
    plan = UnfreezingPlan.from_config(state["plan"])
    return BestEpoch(plan, int(state["stage"]), int(state["epoch"]))


class RecordBestEpoch(keras.callbacks.Callback):
    """Writes the record each time that a tuner has kept better weights.

    Args:
        trial: The trial.
        plan: Its plan.
    """

    def __init__(self, trial: Trial, plan: UnfreezingPlan) -> None:
        super().__init__()
        self.trial = trial
        self.plan = plan
        # Several trainings of a trial share one saver, and so one best value.
        self._best = None if trial.saver is None else trial.saver.best_value

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if self.trial.saver is None:
            return
        best = self.trial.saver.best_value
        if best == self._best or math.isnan(best):
            return
        self._best = best
        stage = (logs or {})["stage"]
        record = {"plan": self.plan.get_config(), "stage": int(stage), "epoch": int(epoch)}
        write_state(self.trial.directory / FILE, record)

    def get_state(self) -> dict[str, Any]:
        """Returns the best value so far, for `ResumableTraining`."""
        return {"best": self._best}

    def set_state(self, state: dict[str, Any]) -> None:
        """Puts back what `get_state` returned, for the tuner's callback as well.

        Args:
            state: What `get_state` returned.
        """
        self._best = state["best"]
        if self.trial.saver is not None:
            self.trial.saver.best_value = self._best


def set_flags_when_loaded(model: Any) -> None:
    """Lets a model that loads a trial's weights take the flags of their stage as well.

    KerasTuner's `get_best_models` builds a model and loads weights by path. It knows nothing of
    stages, and the path is all that tells which trial the model becomes.
    """
    load_weights = model.load_weights

    def load_weights_and_flags(filepath: Any, *args: Any, **kwargs: Any) -> None:
        load_weights(filepath, *args, **kwargs)
        record = read_best_epoch(pathlib.Path(filepath).parent)
        if record is not None:
            record.apply_to(model)

    model.load_weights = load_weights_and_flags
