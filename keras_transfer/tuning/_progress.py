"""The line that a search prints for each trial."""

from __future__ import annotations

import pathlib
import time
from collections.abc import Callable
from typing import Any

from keras_transfer.tuning._best_epoch import read_best_epoch
from keras_transfer.tuning._failures import short
from keras_transfer.tuning._oracle import COMPLETED, FAILED


class Progress:
    """Prints a line when a trial has ended.

    Args:
        oracle: The oracle.
        clock: Returns the time in seconds.
    """

    def __init__(self, oracle: Any, clock: Callable[[], float] = time.monotonic) -> None:
        self._oracle = oracle
        self._clock = clock
        self._begin = clock()
        self._before = len(oracle.end_order)

    def trial_ended(self, trial: Any) -> None:
        """Prints the line of a trial."""
        print(f"{self._which()}: {self._what(trial)} {self._best()}{self._left()}", flush=True)

    def _which(self) -> str:
        most = self._oracle.max_trials
        of = f" of {most}" if most else ""
        return f"Trial {len(self._oracle.end_order)}{of}"

    def _what(self, trial: Any) -> str:
        if trial.status == FAILED:
            return f"failed, {short(trial.message).rstrip('.')}."
        if trial.status != COMPLETED:
            return f"pruned, {short(trial.message).rstrip('.')}."
        directory = pathlib.Path(self._oracle._get_trial_dir(trial.trial_id))
        record = read_best_epoch(directory)
        where = f"in epoch {trial.best_step + 1}"
        if record is not None:
            stage = record.plan.stages[record.stage].name
            where += f" of {record.plan.total_epochs}, stage {stage!r}"
        return f"{self._oracle.objective.name} {trial.score:.4g} {where}."

    def _best(self) -> str:
        best = self._oracle.get_best_trials(1)
        if not best or best[0].status != COMPLETED:
            return "No best one yet."
        return f"Best {best[0].score:.4g} (trial {best[0].trial_id})."

    def _left(self) -> str:
        most = self._oracle.max_trials
        done = len(self._oracle.end_order) - self._before
        if not most or not done or len(self._oracle.end_order) >= most:
            return ""
        seconds = (self._clock() - self._begin) / done * (most - len(self._oracle.end_order))
        return f" About {_duration(seconds)} left."


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
