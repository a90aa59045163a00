"""`tune`: a whole search in one line."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import keras
import keras_tuner

from keras_transfer import _checks
from keras_transfer.features import FeatureCache
from keras_transfer.model import TransferModel
from keras_transfer.tuning import _fit_arguments, _isolated
from keras_transfer.tuning.hypermodel import FineTuningHyperModel
from keras_transfer.tuning.pruning import Pruning
from keras_transfer.tuning.result import TuningResult
from keras_transfer.tuning.search_space import SearchSpace
from keras_transfer.tuning.tuner import Tuner

ORACLES = {
    "bayesian": keras_tuner.oracles.BayesianOptimizationOracle,
    "random": keras_tuner.oracles.RandomSearchOracle,
    "grid": keras_tuner.oracles.GridSearchOracle,
}
SEED_FOR_0 = 2**31 - 1  # KerasTuner's oracles take 0 for "no seed", and draw one


def tune(
    build_model: Callable[[], TransferModel],
    train: Any,
    validation_data: Any = None,
    *,
    search_space: SearchSpace | None = None,
    objective: str | keras_tuner.Objective | None = None,
    max_trials: int = 20,
    oracle: str | keras_tuner.Oracle = "bayesian",
    pruning: str | Pruning | None = "median",
    max_consecutive_failed_trials: int = 3,
    isolate_trials: bool = False,
    cache_features: bool | str | FeatureCache = "auto",
    seed: int | None = 0,
    directory: str | os.PathLike[str] = ".",
    project_name: str = "fine_tuning",
    overwrite: bool = False,
    distribution_strategy: Any = None,
    callbacks: Sequence[keras.callbacks.Callback] | None = None,
    lease_s: float = 120.0,
    verbose: int = 1,
    **fit_arguments: Any,
) -> TuningResult:
    """Searches for the best fine-tuning, and returns the best model, its plan and all trials.

    Run the same command again after a crash, and the search goes on; after its end, the result
    comes at once. Set KerasTuner's `KERASTUNER_ORACLE_IP`, `KERASTUNER_ORACLE_PORT` and
    `KERASTUNER_TUNER_ID`, and the same script is the chief or a worker of a search on several
    machines with a common `directory`.

    Args:
        build_model: Takes nothing and returns a new `TransferModel`; see
            `FineTuningHyperModel`.
        train: A pair `(inputs, targets)`, or a data set of batches.
        validation_data: As in `fit`; not the data that the tuned model is judged on later.
        search_space: What is tuned; by default `SearchSpace()`.
        objective: What is to be improved; by default `"val_accuracy"` where the model reports
            it, and else `"val_loss"`.
        max_trials: How many trials at most.
        oracle: `"bayesian"`, `"random"`, `"grid"`, or one of KerasTuner's oracles, which then
            has objective, number of trials and limit of its own.
        pruning: When trials end early; see `Tuner`.
        max_consecutive_failed_trials: After so many failures in a row the search ends with an
            error.
        isolate_trials: Whether each trial runs in a process of its own; see `Tuner`.
        cache_features: How trials share the features of frozen layers; see
            `FineTuningHyperModel`.
        seed: Of the oracle, and set before each trial.
        directory: Where the project lies.
        project_name: The project's folder in it; a search of another kind needs another.
        overwrite: Whether to delete a project of this name, and search anew.
        distribution_strategy: Each model is built and trained under it.
        callbacks: Copied for each trial.
        lease_s: See `Tuner`.
        verbose: 0 is silent, 1 prints a line for each trial, 2 one for each epoch as well.
        **fit_arguments: Other arguments of `fit`, such as `batch_size` and `epochs`.

    Returns:
        The result. In a worker, too, once the search has ended.

    Raises:
        TypeError: If an argument has another type.
        ValueError: Before the first trial, if arguments, data and model do not go together.
        RuntimeError: If too many trials in a row failed.

    Example:

    ```python
    import keras
    import numpy as np
    import keras_transfer as ktf

    def build_model():
        backbone = keras.Sequential([
            keras.Input((4,)), keras.layers.Dense(8, name="stem"),
            keras.layers.Dense(8, name="body")])
        return ktf.TransferModel(
            backbone, ktf.layers.ClassificationHead(2, name="head"), groups="blocks")

    x, y = np.random.rand(16, 4), np.random.randint(2, size=16)
    result = ktf.tuning.tune(build_model, (x, y), validation_data=(x, y), max_trials=2, verbose=0,
                             search_space=ktf.tuning.SearchSpace(epochs=2))
    print(result.table())
    result.best_model.predict(x, verbose=0)
    ```
    """
    hypermodel = FineTuningHyperModel(
        build_model, search_space, cache_features=cache_features, seed=seed
    )
    x, y = train if isinstance(train, tuple) and len(train) == 2 else (train, None)
    arguments = {**fit_arguments, "x": x, "validation_data": validation_data}
    if y is not None:
        arguments["y"] = y
    if callbacks is not None:
        arguments["callbacks"] = list(callbacks)
    if isinstance(oracle, str):
        kind = ORACLES[_checks.choice(oracle, "oracle", ORACLES)]
        oracle = kind(
            objective=_objective_of(objective, hypermodel, arguments, isolate_trials),
            seed=SEED_FOR_0 if seed == 0 else seed,
            max_consecutive_failed_trials=_checks.integer(
                max_consecutive_failed_trials, "max_consecutive_failed_trials", minimum=1
            ),
            max_trials=_checks.integer(max_trials, "max_trials", minimum=1),
        )
    elif objective is not None:
        raise ValueError(
            "An oracle has an objective of its own. Leave `objective` out. Received: "
            f"objective={objective!r}"
        )
    tuner = Tuner(
        hypermodel,
        oracle,
        pruning=pruning,
        lease_s=lease_s,
        isolate_trials=isolate_trials,
        directory=directory,
        project_name=project_name,
        overwrite=overwrite,
        distribution_strategy=distribution_strategy,
    )
    tuner.search(verbose=verbose, **arguments)
    return TuningResult(tuner)


def _objective_of(
    objective: Any, hypermodel: Any, arguments: dict[str, Any], isolate_trials: bool
) -> Any:
    """Returns the objective, one that the model reports if none was given."""
    if objective is not None and not isinstance(objective, str):
        return objective
    model = hypermodel.build(keras_tuner.HyperParameters())
    plain = _isolated.loaded(arguments) if isolate_trials else arguments
    if objective is not None:
        # KerasTuner would ask for the direction of a name that is only misspelt.
        wanted = keras_tuner.Objective(objective, "min")
        _fit_arguments.check_data(plain, wanted)
        _fit_arguments.check_objective(model, plain, wanted)
        return objective
    _fit_arguments.check_data(plain, keras_tuner.Objective("val_loss", "min"))
    names = _fit_arguments.reported_names(model, plain) or []
    return "val_accuracy" if "val_accuracy" in names else "val_loss"
