"""Trains a trial in a process of its own, whose memory goes with it.

The process is started afresh (`spawn`) and told over a pipe what to do. It has the objects of
this process as `multiprocessing` hands them over, so functions are found by their names.
"""

from __future__ import annotations

import multiprocessing
import pathlib
import signal
import traceback
from collections.abc import Mapping
from typing import Any

import keras
import keras_tuner

from keras_transfer.features import FeatureCache
from keras_transfer.features._sources import as_arrays
from keras_transfer.tuning._failures import reason_of
from keras_transfer.tuning._report_epochs import Report
from keras_transfer.tuning._run_trial import saver_of
from keras_transfer.tuning._run_trial import train as train_here
from keras_transfer.tuning._trial import Trial

DATA = ("x", "y", "sample_weight", "validation_data")


class LostTrialError(RuntimeError):
    """The process of a trial ended without a word."""


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


def train(
    hypermodel: Any,
    hp: keras_tuner.HyperParameters,
    trial: Trial,
    callbacks: list[keras.callbacks.Callback],
    arguments: dict[str, Any],
    report: Report,
) -> None:
    """Trains a trial in a process of its own.

    Args:
        hypermodel: The `FineTuningHyperModel`.
        hp: The trial's hyperparameters.
        trial: The trial.
        callbacks: The user's callbacks.
        arguments: The other arguments of `fit`, by name.
        report: Takes each epoch and returns whether to go on.

    Raises:
        keras_tuner.errors.FailedTrialError: If the trial failed.
        LostTrialError: If its process was killed.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    job = {
        "build_model": hypermodel.build_model,
        "search_space": hypermodel.search_space,
        "seed": hypermodel.seed,
        "cache": _cache_on_disk(hypermodel, trial),
        "policy": keras.config.dtype_policy().name,
        "hp": hp.get_config(),
        "trial_id": trial.trial_id,
        "project_dir": trial.project_dir,
        "objective": trial.objective,
        "callbacks": callbacks,
        "arguments": arguments,
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
    while True:
        try:
            kind, *message = connection.recv()
        except EOFError:
            process.join(timeout=10)
            raise LostTrialError(_how_it_ended(process.exitcode)) from None
        if kind == "epoch":
            connection.send(report(*message))
        elif kind == "failed":
            raise keras_tuner.errors.FailedTrialError(message[0])
        else:
            return


def _how_it_ended(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        return f"The trial's process was killed by {name} (out of memory?)."
    return f"The trial's process ended with exit code {code}."


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
        connection.send(("failed", message))
    else:
        connection.send(("done",))


def _train_in_child(connection: Any, job: dict[str, Any]) -> None:
    from keras_transfer.tuning.hypermodel import FineTuningHyperModel

    keras.config.set_dtype_policy(job["policy"])
    cache = False if job["cache"] is None else FeatureCache(**job["cache"])
    hypermodel = FineTuningHyperModel(
        job["build_model"], job["search_space"], cache_features=cache, seed=job["seed"]
    )
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
    hypermodel.build(keras_tuner.HyperParameters())  # twice: to see whether builds are alike
    keras.backend.clear_session()
    model = hypermodel.build(hp)
    trial = trial.with_saver(saver_of(hypermodel, trial))
    train_here(hypermodel, hp, model, trial, job["callbacks"], loaded(job["arguments"]), report)
