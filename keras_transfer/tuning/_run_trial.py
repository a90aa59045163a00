"""Trains one trial: in this process, or in one of its own (`_isolated.py`)."""

from __future__ import annotations

import math
from typing import Any

import keras
import keras_tuner

from keras_transfer.tuning._best_weights import SaveBestWeights
from keras_transfer.tuning._report_epochs import Report, ReportEpochs
from keras_transfer.tuning._trial import Trial


def train(
    hypermodel: Any,
    hp: Any,
    model: Any,
    trial: Trial,
    callbacks: list[keras.callbacks.Callback],
    arguments: dict[str, Any],
    report: Report,
) -> keras.callbacks.History:
    """Trains the model of a trial, keeps its best weights and reports its epochs.

    Args:
        hypermodel: The `FineTuningHyperModel`.
        hp: The trial's hyperparameters.
        model: What was built of them, last of all.
        trial: The trial, without a saver, which is made here.
        callbacks: The user's callbacks.
        arguments: The other arguments of `fit`, by name.
        report: Takes each epoch and returns whether to go on.
    """
    # Reported first: a worker that has lost its trial writes nothing over the work of another.
    callbacks = [*callbacks, ReportEpochs(report), *([] if trial.saver is None else [trial.saver])]
    return hypermodel.fit_trial(hp, model, trial, callbacks, dict(arguments))


def check_size(model: Any, limit: int | None) -> None:
    """Checks a model's size as KerasTuner does.

    Raises:
        keras_tuner.errors.FailedTrialError: If it is above the limit.
    """
    size = sum(math.prod(weight.shape) for weight in model.trainable_weights)
    if limit and size > limit:
        raise keras_tuner.errors.FailedTrialError(
            f"Oversized model: {size} parameters. {limit_text(limit)}"
        )


def limit_text(limit: int) -> str:
    """Returns the sentence that names the limit."""
    return f"The limit is max_model_size={limit}, and what is frozen does not count."


def saver_of(hypermodel: Any, trial: Trial) -> SaveBestWeights:
    """Returns what keeps the best weights of all trainings of a trial."""
    built = hypermodel.built if hypermodel.builds_alike else None
    return SaveBestWeights(trial.directory, trial.objective, built)
