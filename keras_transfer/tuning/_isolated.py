"""Trains a trial in a process of its own, whose memory goes with it.

The process is told over a pipe what to do. It has the objects of this process as
`multiprocessing` hands them over, so functions are found by their names. On Linux it is forked
from a server that has imported the package and done nothing else (a fork after TensorFlow's first
operation hangs); elsewhere it is started afresh.
"""

from __future__ import annotations

import multiprocessing
import pathlib
import signal
import sys
import traceback
from collections.abc import Mapping
from multiprocessing import reduction
from typing import Any

import keras
import keras_tuner

from keras_transfer import _fit_checks
from keras_transfer.features import FeatureCache
from keras_transfer.features._sources import as_arrays
from keras_transfer.tuning._failures import reason_of
from keras_transfer.tuning._report_epochs import Report
from keras_transfer.tuning._run_trial import check_size, saver_of
from keras_transfer.tuning._run_trial import train as train_here
from keras_transfer.tuning._trial import Trial

DATA = ("x", "y", "sample_weight", "validation_data")
START_METHOD = "forkserver" if sys.platform == "linux" else "spawn"


class LostTrialError(RuntimeError):
    """The process of a trial ended without a word."""


class FailedElsewhereError(RuntimeError):
    """A trial raised an error in its process; the message has it."""


def check_not_within_a_trial() -> None:
    """Checks that a script that is imported by a trial's process does not search again.

    Raises:
        RuntimeError: If it does.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise RuntimeError(
            "With isolate_trials=True, each trial's process imports your script, which has begun "
            "the search again there. Put the search under `if __name__ == '__main__':`."
        )


def loaded(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments with data in the place of the functions that return it."""
    found = dict(arguments)
    for name in DATA:
        if callable(found.get(name)):
            value = found[name]()
            if name == "x" and isinstance(value, tuple):
                found["x"], found["y"] = value
            else:
                found[name] = value
    return found


def check(hypermodel: Any, arguments: Mapping[str, Any]) -> None:
    """Checks that model and data can be handed to another process.

    Raises:
        ValueError: If they cannot.
    """
    build = hypermodel.build_model
    if "<" in getattr(build, "__qualname__", "<"):
        raise ValueError(
            "With isolate_trials=True, `build_model` is called in other processes, which find it "
            f"by its name. Received: build_model={build!r}. Define it at the top of a module or "
            "script."
        )
    if build.__module__ == "__main__" and not hasattr(sys.modules["__main__"], "__file__"):
        raise ValueError(
            "With isolate_trials=True, `build_model` is called in other processes, which cannot "
            "find what was defined in a notebook or typed at a prompt. Write it to a module, a "
            "file such as models.py, and import it."
        )
    _check_pickles(build, "build_model")
    for callback in _fit_checks.as_list(arguments.get("callbacks")):
        _check_pickles(callback, "callbacks")
    for name in DATA:
        if callable(arguments.get(name)):
            _check_pickles(arguments[name], name)
    for name in DATA:
        value = arguments.get(name)
        if value is None or callable(value):
            continue
        parts = value if isinstance(value, tuple) else (value,)
        if as_arrays(parts[0], *(*parts[1:], None, None)[:2]) is None:
            raise ValueError(
                f"With isolate_trials=True, `{name}` is handed to other processes: it must be "
                f"arrays, or a function that returns the data. Received: {type(value).__name__}. "
                "Define a function at the top of a module or script, and pass that."
            )


def _check_pickles(value: Any, name: str) -> None:
    try:
        reduction.ForkingPickler.dumps(value)
    except Exception as error:  # whatever an object raises that cannot be pickled
        raise ValueError(
            f"With isolate_trials=True, `{name}` is handed to other processes, and that cannot "
            f"be done with {value!r}: {error}. Define functions and classes at the top of a module "
            "or script."
        ) from error


def train(
    hypermodel: Any,
    hp: keras_tuner.HyperParameters,
    trial: Trial,
    callbacks: list[keras.callbacks.Callback],
    arguments: dict[str, Any],
    report: Report,
    max_model_size: int | None = None,
) -> None:
    """Trains a trial in a process of its own.

    Args:
        hypermodel: The `FineTuningHyperModel`.
        hp: The trial's hyperparameters.
        trial: The trial.
        callbacks: The user's callbacks.
        arguments: The other arguments of `fit`, by name.
        report: Takes each epoch and returns whether to go on.
        max_model_size: How many parameters may train.

    Raises:
        keras_tuner.errors.FailedTrialError: If the trial failed for good.
        FailedElsewhereError: If it raised another error.
        LostTrialError: If its process was killed.
    """
    context: Any = multiprocessing.get_context(START_METHOD)
    context.set_forkserver_preload(["keras_transfer.tuning"])  # takes seconds; once for all trials
    ours, theirs = context.Pipe()
    job = {
        "build_model": hypermodel.build_model,
        "search_space": hypermodel.search_space,
        "seed": hypermodel.seed,
        "backbone_digests": hypermodel.backbone_digests,
        "builds_alike": hypermodel.builds_alike,
        "cache": _cache_on_disk(hypermodel, trial),
        "policy": keras.config.dtype_policy().name,
        "hp": hp.get_config(),
        "trial_id": trial.trial_id,
        "project_dir": trial.project_dir,
        "objective": trial.objective,
        "callbacks": callbacks,
        "arguments": arguments,
        "max_model_size": max_model_size,
    }
    process = context.Process(target=_child, args=(theirs, job))
    process.start()
    theirs.close()
    try:
        _listen(ours, process, report)
    finally:
        ours.close()
        process.join(timeout=10)
        if process.is_alive():
            process.kill()
            process.join()


def _listen(connection: Any, process: Any, report: Report) -> None:
    answer: bool | None = None
    while True:
        try:
            if answer is not None:
                connection.send(answer)
            kind, *message = connection.recv()
        except (EOFError, ConnectionError):
            process.join(timeout=10)
            raise LostTrialError(_how_it_ended(process.exitcode)) from None
        if kind == "epoch":
            answer = report(*message)
        elif kind == "failed":
            text, for_good = message
            raise (keras_tuner.errors.FailedTrialError if for_good else FailedElsewhereError)(text)
        else:
            return


def _how_it_ended(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        return f"The trial's process was killed by {name} (out of memory?)."
    return f"The trial's process ended with exit code {code}; what it printed says why."


def _cache_on_disk(hypermodel: Any, trial: Trial) -> dict[str, Any] | None:
    """Returns the arguments of a cache that processes can share."""
    if hypermodel.cache_features is False:
        return None
    cache = hypermodel.cache
    directory = cache.directory or trial.project_dir / "features"
    return {
        "directory": directory,
        "max_bytes": cache.max_bytes if cache.directory is not None else None,
        "dtype": cache.dtype,
        "key": cache.key,
        "fold_constants": cache.fold_constants,
    }


def _child(connection: Any, job: dict[str, Any]) -> None:
    try:
        _train_in_child(connection, job)
    except KeyboardInterrupt:
        return  # the parent says it
    except Exception as error:
        message = reason_of(error)
        if not message:
            message = traceback.format_exc()
        for_good = isinstance(error, keras_tuner.errors.FailedTrialError)
        connection.send(("failed", message, for_good))
    else:
        connection.send(("done",))


def _train_in_child(connection: Any, job: dict[str, Any]) -> None:
    from keras_transfer.tuning.hypermodel import FineTuningHyperModel

    keras.config.set_dtype_policy(job["policy"])
    cache = False if job["cache"] is None else FeatureCache(**job["cache"])
    hypermodel = FineTuningHyperModel(
        job["build_model"], job["search_space"], cache_features=cache, seed=job["seed"]
    )
    # The build here is compared with those of the search's own process.
    hypermodel.backbone_digests = job["backbone_digests"]
    hypermodel.builds_alike = job["builds_alike"]
    project_dir = pathlib.Path(job["project_dir"])
    trial = Trial(
        trial_id=job["trial_id"],
        project_dir=project_dir,
        directory_of=lambda name: project_dir / f"trial_{name}",
        objective=job["objective"],
    )

    def report(epoch: int, numbers: dict[str, float]) -> bool:
        connection.send(("epoch", epoch, numbers))
        return bool(connection.recv())

    hp = keras_tuner.HyperParameters.from_config(job["hp"])
    model = hypermodel.build(hp)
    check_size(model, job["max_model_size"])
    _add_hyperparameters_to_tensorboard(job["callbacks"], trial.trial_id, hp)
    trial = trial.with_saver(saver_of(hypermodel, trial))
    train_here(hypermodel, hp, model, trial, job["callbacks"], loaded(job["arguments"]), report)


def _add_hyperparameters_to_tensorboard(callbacks: list[Any], trial_id: str, hp: Any) -> None:
    """Does what the tuner does in its own process; it uses nothing of a tuner but its methods."""
    tuner = object.__new__(keras_tuner.Tuner)
    trial = keras_tuner.engine.trial.Trial(hyperparameters=hp, trial_id=trial_id)
    tuner._configure_tensorboard_dir(callbacks, trial, 0)
