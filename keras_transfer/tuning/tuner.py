"""`Tuner`: runs a search that survives crashes, prunes trials, and writes little."""

from __future__ import annotations

import contextlib
import os
import pathlib
import time
from typing import Any

import keras
import keras_tuner
from keras_tuner.engine.tuner import maybe_distribute

from keras_transfer import _checks, _fit_checks
from keras_transfer.tuning import _chief, _fit_arguments, _isolated, _run_trial
from keras_transfer.tuning._best_epoch import read_best_epoch
from keras_transfer.tuning._best_weights import load_best_weights
from keras_transfer.tuning._failures import reason_of, short, write_reason
from keras_transfer.tuning._heartbeat import Heartbeat, LostLeaseError
from keras_transfer.tuning._oracle import (
    COMPLETED,
    FAILED,
    IDLE,
    PRUNED,
    make_reliable,
)
from keras_transfer.tuning._progress import Progress
from keras_transfer.tuning._same_search import check_same_search
from keras_transfer.tuning._state_files import (
    DamagedStateError,
    copy_of,
    read_state,
    write_state,
)
from keras_transfer.tuning._trial import EPOCHS, INITIAL_EPOCH, Trial
from keras_transfer.tuning.hypermodel import FineTuningHyperModel, best_trials
from keras_transfer.tuning.pruning import Pruning, rule_of

IDLE_SECONDS = 0.3


class Tuner(keras_tuner.Tuner):
    """A KerasTuner tuner for `FineTuningHyperModel`, with any of KerasTuner's oracles.

    What it adds to KerasTuner's own tuners:

    - State files are whole or not there, are checked when read back, and have a copy. A search
      that was killed at any moment goes on with the same command, and runs again only the trial
      that was running.
    - A trial that fails (losses that are not finite, exceptions, no memory, a model too large)
      is kept with its reason, and the search goes on, up to the oracle's
      `max_consecutive_failed_trials`.
    - `pruning` ends hopeless trials early; what is compared is the same stage. A pruned trial
      is no failure, and never the best.
    - Under a chief, workers hold leases on their trials. The trial of a worker that dies is run
      again by another; a worker that was started again rejoins; the chief ends when the work is
      done, and raises when it has failed.
    - Of a trial, the variables that changed since the model was built are kept, for its best
      epoch.
    - With `isolate_trials=True`, each trial runs in a process of its own, whose memory goes
      with it.

    Args:
        hypermodel: What is tuned.
        oracle: Any of KerasTuner's, such as `keras_tuner.oracles.BayesianOptimizationOracle(
            objective="val_accuracy", max_trials=20)`. It is changed in place.
        pruning: When trials end early: `"median"`, `"halving"`, a rule such as
            `MedianPruning(min_trials=5)`, or `None` for never.
        lease_s: Seconds after which a worker that was not heard of has lost its trial. Workers
            say that they are alive four times in that span, however long an epoch takes.
        isolate_trials: Whether each trial runs in a process of its own. `build_model` has to be
            a function of a module or script, and data arrays or such functions; a script
            searches under `if __name__ == "__main__":`, since these processes import it.
        **kwargs: Arguments of `keras_tuner.Tuner`: `directory`, `project_name`, `overwrite`,
            `distribution_strategy`, `max_model_size`, `executions_per_trial`, ...

    Raises:
        TypeError: If an argument has another type.
        ValueError: If arguments contradict each other, or the project cannot be read.

    Example:

    ```python
    import keras, keras_tuner
    import numpy as np
    import keras_transfer as ktf

    def build_model():
        backbone = keras.Sequential([
            keras.Input((4,)), keras.layers.Dense(8, name="stem"),
            keras.layers.Dense(8, name="body")])
        return ktf.TransferModel(
            backbone, ktf.layers.ClassificationHead(2, name="head"), groups="blocks")

    tuner = ktf.tuning.Tuner(
        ktf.tuning.FineTuningHyperModel(build_model, ktf.tuning.SearchSpace(epochs=1)),
        keras_tuner.oracles.RandomSearchOracle("val_loss", max_trials=2),
        project_name="sketch")
    x, y = np.random.rand(16, 4), np.random.randint(2, size=16)
    tuner.search(x, y, validation_data=(x, y), verbose=0)
    model = tuner.get_best_models()[0]
    ```
    """

    oracle: Any

    def __init__(
        self,
        hypermodel: FineTuningHyperModel,
        oracle: keras_tuner.Oracle,
        *,
        pruning: str | Pruning | None = None,
        lease_s: float = 120.0,
        isolate_trials: bool = False,
        **kwargs: Any,
    ) -> None:
        if not isinstance(hypermodel, FineTuningHyperModel):
            raise TypeError(
                "`hypermodel` must be a `FineTuningHyperModel`. Received: "
                f"hypermodel={hypermodel!r}"
            )
        if not isinstance(oracle, keras_tuner.Oracle):
            raise TypeError(
                "`oracle` must be one of KerasTuner's oracles, such as "
                "keras_tuner.oracles.RandomSearchOracle('val_loss', max_trials=10). Received: "
                f"oracle={oracle!r}"
            )
        rule = rule_of(pruning)
        if rule is not None and isinstance(oracle, keras_tuner.oracles.HyperbandOracle):
            raise ValueError(
                "Hyperband ends hopeless trials itself, and waits for all trials of a round. "
                f"Received: pruning={pruning!r}. Pass pruning=None, or another oracle."
            )
        if isolate_trials:
            _isolated.check_not_within_a_trial()
        self.is_chief, self.is_worker = _roles()
        if self.is_worker and kwargs.get("overwrite"):
            raise ValueError(
                "overwrite=True in a worker would delete the project that the chief is running. "
                "Pass it to the chief alone: it has 'chief' in KERASTUNER_TUNER_ID."
            )
        if isolate_trials and kwargs.get("executions_per_trial", 1) != 1:
            raise ValueError("isolate_trials=True goes with executions_per_trial=1.")
        if isolate_trials and kwargs.get("distribution_strategy") is not None:
            raise ValueError(
                "A distribution strategy cannot be handed to another process. With "
                "isolate_trials=True, make it in `build_model`."
            )
        compiled = [n for n in ("optimizer", "loss", "metrics") if kwargs.get(n) is not None]
        if isolate_trials and compiled:
            raise ValueError(
                f"`{compiled[0]}` cannot be handed to another process. With isolate_trials=True, "
                "compile in `build_model`."
            )
        self.lease_s = _checks.number(lease_s, "lease_s", above=0)
        self.isolate_trials = bool(isolate_trials)
        make_reliable(oracle, rule, self.lease_s)
        self._is_reloaded = False
        self._lease: Heartbeat | None = None
        self._verbose = 0
        super().__init__(oracle, hypermodel, **kwargs)
        self._searched, self._written = self.oracle, oracle  # in a worker, the first is a client
        # KerasTuner looks for a file that is not there before a first trial has ended.
        started = pathlib.Path(oracle._get_oracle_fname())
        is_there = started.exists() or copy_of(started).exists()
        if is_there and not self._is_reloaded and not self.is_worker:
            self.reload()

    # --- Files ----------------------------------------------------------------------------------

    def save(self) -> None:
        if not self.is_worker:
            self.oracle.save()
        write_state(pathlib.Path(self._get_tuner_fname()), self.get_state())

    def reload(self) -> None:
        self._is_reloaded = True
        if not self.is_worker:
            self.oracle.reload()
        # It holds nothing but that there is one.
        with contextlib.suppress(DamagedStateError, FileNotFoundError):
            self.set_state(read_state(pathlib.Path(self._get_tuner_fname())))

    # --- The search -----------------------------------------------------------------------------

    def search(self, *fit_args: Any, verbose: int = 1, **fit_kwargs: Any) -> None:
        """Runs trials until the oracle has enough of them.

        Args:
            *fit_args: Arguments of `TransferModel.fit`.
            verbose: 0 is silent, 1 prints a line for each trial, 2 one for each epoch as well.
            **fit_kwargs: As `fit_args`, by name.

        Raises:
            ValueError: Before the first trial, if model, data, objective and project do not go
                together.
            RuntimeError: If too many trials in a row failed; the message has the reasons.
        """
        self._verbose = verbose
        self.oracle = self._searched
        arguments = _fit_arguments.named(fit_args, fit_kwargs)
        self._check(arguments)
        if not self.is_worker:
            progress = Progress(self.oracle)
            if verbose:
                self.oracle.on_trial_ended = progress.trial_ended
        if self.is_chief:
            self.save()
            _chief.serve(self.oracle)
        else:
            self._run_trials(arguments)
        if self.is_worker:
            self._read_project()
        failure = "" if self.is_worker else self.oracle.failure
        if failure:
            raise RuntimeError(failure)

    def _read_project(self) -> None:
        """Takes from the files what came of a search; its chief, whom workers ask, is gone."""
        self.oracle = self._written
        self.oracle.read()

    def _check(self, arguments: dict[str, Any]) -> None:
        keras.backend.clear_session()
        model = self._build_hypermodel(self.oracle.get_space())
        project = pathlib.Path(self.project_dir)
        if not self.is_worker:
            check_same_search(project, self.hypermodel.search_space, model.layer_groups.names)
        if self.is_chief and arguments.get("x") is None:
            return  # a chief trains nothing, and needs no data
        plain = _isolated.loaded(arguments) if self.isolate_trials else arguments
        if self.isolate_trials:
            _isolated.check(self.hypermodel, arguments)
        self.hypermodel.check_search(
            model, plain, self.oracle.objective, self.distribution_strategy
        )

    def _run_trials(self, arguments: dict[str, Any]) -> None:
        self.on_search_begin()
        try:
            while True:
                self.pre_create_trial()
                trial = self.oracle.create_trial(self.tuner_id)
                if trial.status == PRUNED:  # KerasTuner's word for "no more trials"
                    break
                if trial.status == IDLE:
                    time.sleep(IDLE_SECONDS)
                    continue
                self._run_and_end(trial, arguments)
        except KeyboardInterrupt:
            if not self.is_worker:
                self.oracle.give_back(self.tuner_id)
            print(
                f"The search was interrupted. Run the same command to go on: {self.project_dir} "
                "has all trials that ended.",
                flush=True,
            )
            raise
        self.on_search_end()

    def _run_and_end(self, trial: Any, arguments: dict[str, Any]) -> None:
        self.on_trial_begin(trial)
        self._lease = None
        if self.is_worker:
            seconds = self.lease_s / 4
            self._lease = Heartbeat(self.oracle, self.tuner_id, trial.trial_id, seconds)
        with self._lease or contextlib.nullcontext():
            self._try(trial, arguments)
        if self._lease is not None and not self._lease.still_holds():
            print(
                f"Trial {trial.trial_id}: this worker was not heard of for {self.lease_s:g} s, and "
                "another one runs the trial.",
                flush=True,
            )
            return
        self.on_trial_end(trial)

    def _try(self, trial: Any, arguments: dict[str, Any]) -> None:
        self._pruned_at: int | None = None
        try:
            self.run_trial(trial, **arguments)
        except keras_tuner.errors.FatalError:
            raise
        except LostLeaseError:
            return
        except Exception as error:  # whatever a trial raises is its own failure, and is kept
            fails = isinstance(error, keras_tuner.errors.FailedTrialError)
            trial.status = FAILED if fails else "INVALID"
            trial.message = reason_of(error)
        else:
            trial.status = COMPLETED
            if self._pruned_at is not None:
                trial.status = PRUNED
                trial.message = f"worse than others after epoch {self._pruned_at + 1}"
        if trial.message:
            write_reason(pathlib.Path(self.get_trial_dir(trial.trial_id)), trial.message)
        if self._verbose and self.is_worker:
            print(f"Trial {trial.trial_id}: {trial.status.lower()}", flush=True)

    def run_trial(self, trial: Any, *fit_args: Any, **fit_kwargs: Any) -> None:
        """Trains a trial and reports its epochs.

        Args:
            trial: The trial.
            *fit_args: Arguments of `TransferModel.fit`.
            **fit_kwargs: As `fit_args`, by name.
        """
        arguments = _fit_arguments.named(fit_args, fit_kwargs)
        arguments["verbose"] = 0
        given = _fit_checks.as_list(arguments.pop("callbacks", None))
        hp = trial.hyperparameters
        if EPOCHS in hp.values:
            arguments["epochs"] = hp.values[EPOCHS]
            arguments["initial_epoch"] = hp.values[INITIAL_EPOCH]
        what = Trial(
            trial_id=trial.trial_id,
            project_dir=pathlib.Path(self.project_dir),
            directory_of=lambda name: pathlib.Path(self.get_trial_dir(name)),
            objective=self.oracle.objective,
            strategy=self.distribution_strategy,
        )
        for execution in range(self.executions_per_trial):
            callbacks = self._deepcopy_callbacks(given)
            if not self.isolate_trials:  # where a summary writer cannot go to
                self._configure_tensorboard_dir(callbacks, trial, execution)
            what = self._train(what, hp, callbacks, arguments, first=execution == 0)
            if self._pruned_at is not None:
                return

    def _train(
        self,
        what: Trial,
        hp: keras_tuner.HyperParameters,
        callbacks: list[keras.callbacks.Callback],
        arguments: dict[str, Any],
        *,
        first: bool,
    ) -> Trial:
        last = self.hypermodel.plan(hp, arguments.get("epochs")).total_epochs - 1

        def report(epoch: int, numbers: dict[str, float]) -> bool:
            may_prune = first and epoch < last  # after the last there is nothing to save
            return self._report(what.trial_id, epoch, numbers, may_prune=may_prune)

        if self.isolate_trials:
            limit = self.max_model_size
            _isolated.train(self.hypermodel, hp, what, callbacks, arguments, report, limit)
            return what
        model = self._try_build(hp)
        if what.saver is None:
            what = what.with_saver(_run_trial.saver_of(self.hypermodel, what))
        _run_trial.train(self.hypermodel, hp, model, what, callbacks, arguments, report)
        return what

    def _try_build(self, hp: keras_tuner.HyperParameters) -> Any:
        try:
            return super()._try_build(hp)
        except keras_tuner.errors.FailedTrialError as error:
            if self.max_model_size is None:
                raise
            what = str(error).removesuffix(" Skip model.")
            raise keras_tuner.errors.FailedTrialError(
                f"{what} {_run_trial.limit_text(self.max_model_size)}"
            ) from None

    def _report(
        self, trial_id: str, epoch: int, numbers: dict[str, float], *, may_prune: bool
    ) -> bool:
        """Reports an epoch to the oracle; returns whether to go on.

        Raises:
            LostLeaseError: If the trial is another worker's by now.
        """
        if self._lease is not None and not self._lease.still_holds():
            raise LostLeaseError
        objective = self.oracle.objective
        if objective.name not in numbers and objective.has_value(numbers):
            numbers = {**numbers, objective.name: objective.get_value(numbers)}  # of several
        if self._verbose > 1:
            shown = [f"{k} {v:.4g}" for k, v in numbers.items() if k != "trainable_parameters"]
            print(f"  trial {trial_id}, epoch {epoch + 1}: {', '.join(shown)}", flush=True)
        answer = self.oracle.update_trial(trial_id, numbers, step=epoch)
        if may_prune and answer.status == PRUNED:
            self._pruned_at = epoch
            return False
        return True

    # --- What came of it --------------------------------------------------------------------------

    def load_model(self, trial: Any) -> keras.Model:
        """Returns the model of a trial as it was in its best epoch: weights, and what trains.

        Args:
            trial: The trial.
        """
        model = self._try_build(trial.hyperparameters)
        directory = pathlib.Path(self.get_trial_dir(trial.trial_id))
        with maybe_distribute(self.distribution_strategy):
            load_best_weights(directory, model)
        record = read_best_epoch(directory)
        if record is not None:
            record.apply_to(model)
        return model

    def get_best_models(self, num_models: int = 1) -> list[keras.Model]:
        """Returns the models of the best trials that were completed, the best first.

        Args:
            num_models: How many at most.
        """
        return [self.load_model(trial) for trial in best_trials(self, num_models)]

    def get_best_hyperparameters(self, num_trials: int = 1) -> list[keras_tuner.HyperParameters]:
        """Returns the hyperparameters of the best trials that were completed, the best first.

        Args:
            num_trials: How many at most.
        """
        return [trial.hyperparameters for trial in best_trials(self, num_trials)]

    def reasons(self) -> dict[str, str]:
        """Returns why trials failed or were pruned, by trial."""
        return {
            name: short(trial.message)
            for name, trial in self.oracle.trials.items()
            if trial.status in (FAILED, PRUNED)
        }


def _roles() -> tuple[bool, bool]:
    """Returns whether this process is the chief of a search, and whether it is a worker."""
    if "KERASTUNER_ORACLE_IP" not in os.environ:
        return False, False
    is_chief = "chief" in os.environ.get("KERASTUNER_TUNER_ID", "")
    return is_chief, not is_chief
