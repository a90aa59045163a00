"""What a hypermodel has to know of the trial that it trains."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import keras

TRIAL_BEFORE = "tuner/trial_id"  # of the hyperparameters that Hyperband adds
EPOCHS = "tuner/epochs"
INITIAL_EPOCH = "tuner/initial_epoch"


@dataclasses.dataclass(frozen=True)
class Trial:
    """A trial of a search.

    Attributes:
        trial_id: Its name.
        project_dir: Where the search keeps its files.
        directory_of: Takes a trial's name and returns where its files are.
        objective: The `keras_tuner.Objective`.
        strategy: The tuner's distribution strategy, if it has one.
        saver: The callback that keeps the weights of the best epoch, if there is one; it has
            the objective's best value so far as `best_value`.
    """

    trial_id: str
    project_dir: pathlib.Path
    directory_of: Callable[[str], pathlib.Path]
    objective: Any
    strategy: Any = None
    saver: Any = None

    @property
    def directory(self) -> pathlib.Path:
        """Where this trial's files are."""
        return self.directory_of(self.trial_id)

    def with_saver(self, saver: Any) -> Trial:
        """Returns the same trial with a callback that keeps its best weights."""
        return dataclasses.replace(self, saver=saver)


def trial_of(callbacks: Sequence[keras.callbacks.Callback]) -> Trial | None:
    """Finds out which trial is about to run, from the callbacks that a tuner adds to the user's.

    KerasTuner tells a hypermodel's `fit` nothing else about it.

    Returns:
        The trial, or `None` where no tuner called.
    """
    for callback in callbacks:
        tuner, trial = getattr(callback, "tuner", None), getattr(callback, "trial", None)
        if tuner is None or trial is None:
            continue
        savers = [c for c in callbacks if hasattr(c, "best_value") and hasattr(c, "objective")]
        return Trial(
            trial_id=trial.trial_id,
            project_dir=pathlib.Path(tuner.project_dir),
            directory_of=_directories_of(tuner),
            objective=tuner.oracle.objective,
            strategy=getattr(tuner, "distribution_strategy", None),
            saver=savers[-1] if savers else None,
        )
    return None


def _directories_of(tuner: Any) -> Callable[[str], pathlib.Path]:
    return lambda name: pathlib.Path(tuner.get_trial_dir(name))
