"""What `Tuner` adds to any oracle: whole files, leases, pruning, a limit that lets go."""

from __future__ import annotations

import copy
import pathlib
import threading
import traceback
import warnings
from collections.abc import Callable
from typing import Any

import keras_tuner

from keras_transfer.tuning._failures import read_reason, short
from keras_transfer.tuning._leases import Leases
from keras_transfer.tuning._state_files import (
    DamagedStateError,
    copy_of,
    read_state,
    write_state,
)
from keras_transfer.tuning.pruning import Pruning, values_in_stages

HEARTBEAT = "heartbeat\n"  # what a worker asks for in the place of a trial, to be heard of
MOST_LOSSES = 3
COMPLETED, FAILED, PRUNED = "COMPLETED", "FAILED", "STOPPED"
RUNNING, IDLE = "RUNNING", "IDLE"


class ReliableOracle(keras_tuner.Oracle):
    """Goes before the class of the user's oracle; see `make_reliable`."""

    pruning: Pruning | None
    leases: Leases
    failure: str
    lost: dict[str, int]
    ongoing_trials: dict[str, Any]

    def prepare(self, pruning: Pruning | None, lease_s: float) -> None:
        """Sets what the class of the user's oracle knows nothing of.

        Args:
            pruning: The rule by which trials end early.
            lease_s: Seconds after which a worker that was not heard of has lost its trial.
        """
        self.pruning = pruning
        self.leases = Leases(lease_s)
        self.failure = ""
        self.lost = {}  # how often the process that ran a trial was lost
        self.told_to_stop = False
        self.on_trial_ended: Callable[[Any], None] = lambda trial: None
        self._guard = threading.RLock()
        self._counted_from = 0
        self._display.verbose = 0  # the tuner has lines of its own

    # --- Files --------------------------------------------------------------------------------

    def save(self) -> None:
        write_state(pathlib.Path(self._get_oracle_fname()), self.get_state())

    def _save_trial(self, trial: Any) -> None:
        path = pathlib.Path(self._get_trial_dir(trial.trial_id)) / "trial.json"
        write_state(path, trial.get_state())

    def reload(self) -> None:
        self.read()
        for trial in self.ongoing_trials.values():
            self._requeue(trial)
        self.ongoing_trials = {}
        self._counted_from = len(self.end_order)

    def read(self) -> None:
        """Takes trials and state from the project's files.

        Raises:
            ValueError: If they are damaged, and so are their copies.
        """
        project = pathlib.Path(self._project_dir)
        try:
            state = read_state(pathlib.Path(self._get_oracle_fname()))
        except (FileNotFoundError, DamagedStateError) as error:
            raise ValueError(
                f"The search in {project} cannot go on: {error}. Put back a copy, or pass "
                "overwrite=True to search anew."
            ) from error
        for directory in sorted(project.glob("trial_*")):
            self._reload_trial(directory)
        for name in state["start_order"]:
            if name not in self.trials:
                self._stand_in(name, state)
        self._reconcile(state)
        self.set_state(state)

    def _reload_trial(self, directory: pathlib.Path) -> None:
        path = directory / "trial.json"
        try:
            trial = keras_tuner.engine.trial.Trial.from_state(read_state(path))
        except FileNotFoundError:
            return
        except DamagedStateError as error:
            warnings.warn(f"{error}. The trial counts as failed.", stacklevel=4)
            path.unlink()
            copy_of(path).unlink(missing_ok=True)
            return
        self.trials[trial.trial_id] = trial

    def _stand_in(self, name: str, state: dict[str, Any]) -> None:
        """Puts a failed trial in the place of one whose files are lost.

        Oracles number trials by how many there are, and some look up those that they know.
        """
        trial = keras_tuner.engine.trial.Trial(
            keras_tuner.HyperParameters.from_config(state["hyperparameters"]),
            trial_id=name,
            status=FAILED,
        )
        trial.message = "Its file trial.json is gone or was damaged, and so was the copy."
        self.trials[name] = trial
        self._save_trial(trial)

    def _reconcile(self, state: dict[str, Any]) -> None:
        """Brings the oracle's state and the trials together, one of which may be older."""
        known = set(state["start_order"])
        for name, trial in list(self.trials.items()):
            if name in known:
                continue
            if trial.status in (COMPLETED, FAILED, PRUNED):
                state["start_order"].append(name)
            else:
                del self.trials[name]  # the oracle will draw the same trial again
        ended = [name for name, t in self.trials.items() if t.status in (COMPLETED, FAILED, PRUNED)]
        state["end_order"] = [n for n in state["end_order"] if n in self.trials]
        state["end_order"] += [n for n in ended if n not in state["end_order"]]
        state["start_order"] = [n for n in state["start_order"] if n in self.trials]
        waiting = [n for n in state["retry_queue"] if n in self.trials and n not in ended]
        state["retry_queue"] = waiting
        state["ongoing_trials"] = {
            tuner: n
            for tuner, n in state["ongoing_trials"].items()
            if n in self.trials and n not in ended
        }

    def get_state(self) -> dict[str, Any]:
        return {**super().get_state(), "lost": self.lost}

    def set_state(self, state: dict[str, Any]) -> None:
        super().set_state(state)
        self.lost = dict(state.get("lost", {}))

    # --- Trials -------------------------------------------------------------------------------

    def create_trial(self, tuner_id: str) -> Any:
        with self._guard:
            self.leases.renew(tuner_id)
            if self.failure:
                self.tuner_ids.discard(tuner_id)
                return _answer(self, None, PRUNED)
            again = tuner_id in self.ongoing_trials
            try:
                trial = super().create_trial(tuner_id)
            except Exception:
                self.failure = traceback.format_exc()  # or a chief would wait for ever
                raise
            if trial.status == PRUNED and self.ongoing_trials:
                # Whoever has nothing to do waits, to take over what another one drops.
                self.tuner_ids.add(tuner_id)
                return _answer(self, None, IDLE)
            self.told_to_stop |= trial.status == PRUNED
            if trial.status == RUNNING:
                if again and not self._count_loss(trial):  # a worker that was started again
                    del self.ongoing_trials[tuner_id]
                    return self.create_trial(tuner_id)
                trial.metrics = type(trial.metrics)()
                trial.message = None
                self._save_trial(trial)
            return trial

    def update_trial(self, trial_id: str, metrics: dict[str, float], step: int = 0) -> Any:
        """Takes the metrics of an epoch; the answer's status is `"STOPPED"` for one to prune."""
        with self._guard:
            trial = super().update_trial(trial_id, metrics, step)
            for tuner_id, ongoing in self.ongoing_trials.items():
                if ongoing.trial_id == trial_id:
                    self.leases.renew(tuner_id)
            return _answer(self, trial, PRUNED if self._is_hopeless(trial, metrics) else RUNNING)

    def _is_hopeless(self, trial: Any, metrics: dict[str, float]) -> bool:
        stage = metrics.get("trainable_parameters")
        if self.pruning is None or stage is None:
            return False
        own = values_in_stages(trial.metrics, self.objective).get(int(stage), [])
        others = [
            values_in_stages(other.metrics, self.objective).get(int(stage), [])
            for other in self.trials.values()
            if other.trial_id != trial.trial_id and other.status != FAILED
        ]
        alike = [values for values in others if len(values) >= len(own)]
        return bool(own) and self.pruning.is_hopeless(own, alike)

    def end_trial(self, trial: Any) -> None:
        with self._guard:
            if trial.message is None and trial.status not in (COMPLETED,):
                # Over the wire a trial comes without its message.
                trial.message = read_reason(pathlib.Path(self._get_trial_dir(trial.trial_id)))
            super().end_trial(trial)
            if trial.trial_id in self.end_order:  # and is not to be tried again
                self.on_trial_ended(self.trials[trial.trial_id])

    def _check_consecutive_failures(self) -> None:
        # Raising here would leave KerasTuner's lock held, and a chief waiting for ever.
        failed = 0
        for name in reversed(self.end_order[self._counted_from :]):
            if self.trials[name].status != FAILED:
                break
            failed += 1
        if failed >= self.max_consecutive_failed_trials:
            reasons = [
                f"trial {name}: {short(self.trials[name].message)}"
                for name in self.end_order[-failed:]
            ]
            self.failure = (
                f"{failed} trials in a row failed, which is the limit "
                f"(max_consecutive_failed_trials). {'; '.join(reasons)}"
            )

    def give_back(self, tuner_id: str) -> None:
        """Lets go of a tuner's trial, which was interrupted and will be run again."""
        with self._guard:
            trial = self.ongoing_trials.pop(tuner_id, None)
            if trial is not None:
                self._retry_queue.append(trial.trial_id)
            self.save()

    # --- Workers ------------------------------------------------------------------------------

    def get_trial(self, trial_id: str) -> Any:
        if not trial_id.startswith(HEARTBEAT):
            return super().get_trial(trial_id)
        _, tuner_id, name = trial_id.split("\n")
        with self._guard:
            held = self.ongoing_trials.get(tuner_id)
            if held is None or held.trial_id != name:
                return _answer(self, self.trials[name], PRUNED)
            self.leases.renew(tuner_id)
            return _answer(self, held, RUNNING)

    def take_back_lost_trials(self) -> None:
        """Requeues the trials of workers whose lease has run out."""
        with self._guard:
            for tuner_id in [t for t in self.tuner_ids if self.leases.is_over(t)]:
                self.tuner_ids.discard(tuner_id)
                trial = self.ongoing_trials.pop(tuner_id, None)
                if trial is not None:
                    print(
                        f"Worker {tuner_id!r} has not been heard of for {self.leases.seconds:g} s. "
                        f"Its trial {trial.trial_id} will be run again."
                    )
                    self._requeue(trial)
                    self.save()

    def _requeue(self, trial: Any) -> None:
        if self._count_loss(trial):
            self._retry_queue.append(trial.trial_id)

    def _count_loss(self, trial: Any) -> bool:
        """Counts that a trial's process was lost; returns whether it may be run again."""
        name = trial.trial_id
        self.lost[name] = self.lost.get(name, 0) + 1
        if self.lost[name] < MOST_LOSSES:
            return True
        trial.status = FAILED
        trial.message = (
            f"The process that ran it was killed {self.lost[name]} times (out of memory?)."
        )
        self.end_order.append(name)
        self._save_trial(trial)
        return False

    def is_over(self) -> bool:
        """Whether nothing is left to do, and everybody who is still there knows."""
        with self._guard:
            ended = self.told_to_stop or bool(self.failure)
            return ended and not self.ongoing_trials and not self.tuner_ids


def make_reliable(oracle: Any, pruning: Pruning | None, lease_s: float) -> None:
    """Makes the user's oracle a `ReliableOracle` of its own kind.

    An oracle calls its own `save` and `_save_trial`, so what it writes can be changed in a
    subclass only; and the user has made the object.
    """
    if not isinstance(oracle, ReliableOracle):
        cls = type(oracle)
        oracle.__class__ = type(f"Reliable{cls.__name__}", (ReliableOracle, cls), {})
    oracle.prepare(pruning, lease_s)


def _answer(oracle: Any, trial: Any, status: str) -> Any:
    """Returns a trial for the worker to read, with a status that is not the trial's own."""
    if trial is None:
        hyperparameters = oracle.get_space()
        hyperparameters.values = {}
        return keras_tuner.engine.trial.Trial(hyperparameters, trial_id="", status=status)
    answer = copy.copy(trial)
    answer.status = status
    return answer
