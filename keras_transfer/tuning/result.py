"""`TuningResult`: what came of a search."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Mapping
from typing import Any

from keras_transfer._tables import format_table
from keras_transfer.model import TransferModel
from keras_transfer.plan import UnfreezingPlan
from keras_transfer.tuning import _pictures
from keras_transfer.tuning._best_epoch import read_best_epoch
from keras_transfer.tuning._failures import short
from keras_transfer.tuning._oracle import COMPLETED, FAILED, PRUNED
from keras_transfer.tuning.hypermodel import best_trials

STATUS = {COMPLETED: "completed", PRUNED: "pruned", FAILED: "failed"}


@dataclasses.dataclass(frozen=True)
class TrialSummary:
    """A trial of a search, as plain data.

    Attributes:
        trial_id: Its name.
        status: `"completed"`, `"pruned"`, `"failed"` or `"unfinished"`.
        score: Its best value of the objective, if it was completed.
        epoch: The epoch of that value, counted from 1.
        stage: Name of the stage that the epoch was in.
        values: Its hyperparameters by name.
        reason: Why it failed or was pruned.
    """

    trial_id: str
    status: str
    score: float | None
    epoch: int | None
    stage: str
    values: Mapping[str, Any]
    reason: str


class TuningResult:
    """What `tune` returns: the best model and plan, and all trials.

    It can be made of any tuner on a `FineTuningHyperModel`, after its search or in another
    process on the same project.

    Args:
        tuner: The tuner.

    Attributes:
        tuner: The tuner.
        trials: A summary of each trial: completed ones first, the best of them first.
    """

    def __init__(self, tuner: Any) -> None:
        self.tuner = tuner
        self.trials = self._summaries()

    @property
    def best_model(self) -> TransferModel:
        """The best trial's model: the weights of its best epoch, and what trained then.

        It is loaded when it is asked for, and then the same model each time.
        """
        return self._best[0]

    @property
    def best_plan(self) -> UnfreezingPlan:
        """The plan that trained the best model."""
        return self._best[1]

    @property
    def best_hyperparameters(self) -> dict[str, Any]:
        """The best trial's hyperparameters by name."""
        return dict(best_trials(self.tuner, 1)[0].hyperparameters.values)

    @functools.cached_property
    def _best(self) -> tuple[TransferModel, UnfreezingPlan]:
        best: tuple[TransferModel, UnfreezingPlan] = self.tuner.hypermodel.best(self.tuner)
        return best

    def table(self) -> str:
        """Returns a table of all trials, the best first, with the reasons of failures."""
        names = list(dict.fromkeys(name for trial in self.trials for name in trial.values))
        names = [name for name in names if not name.startswith("tuner/")]
        why = any(trial.reason for trial in self.trials)
        objective = self.tuner.oracle.objective.name
        rows = [["trial", "status", objective, "epoch", "stage", *names, *(["reason"] * why)]]
        for trial in self.trials:
            score = "-" if trial.score is None else f"{trial.score:.4g}"
            epoch = "-" if trial.epoch is None else str(trial.epoch)
            values = [_text(trial.values.get(name, "-")) for name in names]
            row = [trial.trial_id, trial.status, score, epoch, trial.stage or "-", *values]
            rows.append([*row, *([trial.reason] * why)])
        return format_table(rows)

    def plot(self, axes: Any = None) -> Any:
        """Draws the objective against the trial, and against each hyperparameter.

        Args:
            axes: As many matplotlib axes as there are pictures; `None` for new ones.

        Returns:
            A list of axes.

        Raises:
            ImportError: If matplotlib is not installed.
            ValueError: If no trial was completed, or the axes are too few.
        """
        return _pictures.draw(self.trials, self.tuner.oracle, axes)

    def _summaries(self) -> list[TrialSummary]:
        oracle = self.tuner.oracle
        order = {name: number for number, name in enumerate(oracle.start_order)}
        sign = -1.0 if oracle.objective.direction == "max" else 1.0
        found = [self._summary(trial) for trial in oracle.trials.values()]
        rank = ["completed", "pruned", "failed", "unfinished"]
        return sorted(
            found,
            key=lambda one: (
                rank.index(one.status),
                0.0 if one.score is None else sign * one.score,
                order.get(one.trial_id, 0),
            ),
        )

    def _summary(self, trial: Any) -> TrialSummary:
        status = STATUS.get(trial.status, "unfinished")
        completed = status == "completed"
        record = read_best_epoch(pathlib.Path(self.tuner.get_trial_dir(trial.trial_id)))
        stage = "" if record is None else record.plan.stages[record.stage].name
        return TrialSummary(
            trial_id=trial.trial_id,
            status=status,
            score=float(trial.score) if completed else None,
            epoch=int(trial.best_step) + 1 if completed else None,
            stage=stage if completed else "",
            values=dict(trial.hyperparameters.values),
            reason=short(trial.message) if status in ("pruned", "failed") else "",
        )


def _text(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
