"""`FineTuningHyperModel`: a fine-tuning that any KerasTuner tuner can tune."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
import keras_tuner

from keras_transfer import _checks, _fit_checks
from keras_transfer._label_checks import check_labels
from keras_transfer.callbacks import GradualUnfreezing, ResumableTraining
from keras_transfer.features import FeatureCache
from keras_transfer.model import TransferModel
from keras_transfer.plan import UnfreezingPlan
from keras_transfer.tuning import _fit_arguments, _trial
from keras_transfer.tuning._best_epoch import (
    RecordBestEpoch,
    read_best_epoch,
    set_flags_when_loaded,
)
from keras_transfer.tuning._best_weights import digests_of
from keras_transfer.tuning._fit_arguments import names_of
from keras_transfer.tuning._last_epoch import go_on_from, keep_last_epoch
from keras_transfer.tuning._model_settings import apply_settings, compile_if_need_be
from keras_transfer.tuning._not_finite import StopWhenNotFinite, reported
from keras_transfer.tuning._same_search import check_same_search
from keras_transfer.tuning._shared_features import SharedFeatures
from keras_transfer.tuning.search_space import SearchSpace


class FineTuningHyperModel(keras_tuner.HyperModel):
    """A model with a search space of fine-tunings, for any KerasTuner tuner.

    Give it to `keras_tuner.RandomSearch`, `GridSearch`, `BayesianOptimization`, `Hyperband` or
    a tuner of your own. Each trial is one `TransferModel.fit` under one `UnfreezingPlan`. The
    features of frozen layers are kept for all trials, so that these layers run once in the
    whole search. Under Hyperband a trial's plan is scaled to its epochs, and a promoted trial
    goes on from the last epoch of the one before, with its optimizer state.

    What a tuner and its oracle write and decide is KerasTuner's: files that a crash can
    tear, no pruning within a trial, no leases for workers that die, weights of the whole model
    at each better epoch. `keras_transfer.tuning.Tuner` mends these.

    Args:
        build_model: Takes nothing and returns a new `TransferModel`, compiled or not. One that
            is not gets AdamW and the loss that its head suggests. It is called for each
            trial, in the tuner's distribution scope: make everything in it, the backbone too.
        search_space: What is tuned; by default `SearchSpace()`.
        cache_features: `"auto"`: trials share features in memory, wherever that is provably the
            same as running the frozen layers each time. A
            `keras_transfer.features.FeatureCache`: the same, kept where and how it says: in a
            directory, workers and later runs find them. `False`: each trial runs all layers.
        seed: Set before each trial, so that all start from the same random numbers and one that
            is run again ends the same. `None` leaves the random state alone.

    Raises:
        TypeError: If an argument has another type or, in the tuner's constructor, if
            `build_model` returns no `TransferModel`.
        ValueError: Before the first trial trains: if the objective is not reported, there is no
            validation data, the model was not built under the tuner's strategy, or the
            project belongs to another search space.

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

    hypermodel = ktf.tuning.FineTuningHyperModel(
        build_model, search_space=ktf.tuning.SearchSpace(epochs=1))
    tuner = keras_tuner.RandomSearch(hypermodel, objective="val_loss", max_trials=2)
    x, y = np.random.rand(16, 4), np.random.randint(2, size=16)
    tuner.search(x, y, validation_data=(x, y), verbose=0)
    model, plan = hypermodel.best(tuner)
    ```
    """

    def __init__(
        self,
        build_model: Callable[[], TransferModel],
        search_space: SearchSpace | None = None,
        *,
        cache_features: bool | str | FeatureCache = "auto",
        seed: int | None = None,
    ) -> None:
        super().__init__(name=None, tunable=True)
        if not callable(build_model) or isinstance(build_model, keras.Model):
            raise TypeError(
                "`build_model` must be a function that returns a new `TransferModel`. Received: "
                f"build_model={build_model!r}"
            )
        search_space = SearchSpace() if search_space is None else search_space
        if not isinstance(search_space, SearchSpace):
            raise TypeError(
                f"`search_space` must be a `SearchSpace`. Received: search_space={search_space!r}"
            )
        if not isinstance(cache_features, FeatureCache) and cache_features not in ("auto", False):
            raise ValueError(
                "`cache_features` must be 'auto', False, or a `FeatureCache`. Received: "
                f"cache_features={cache_features!r}"
            )
        self.build_model = build_model
        self.search_space = search_space
        self.cache_features = cache_features
        self.seed = None if seed is None else _checks.integer(seed, "seed", minimum=0)
        self.cache = cache_features if isinstance(cache_features, FeatureCache) else FeatureCache()
        self._shared = SharedFeatures(self.cache)
        self.num_groups = 0  # not known before the first build
        self.built: dict[str, str] = {}  # checksums of the variables of the last build
        self.backbone_digests: list[str] = []  # of the backbone's variables in the last build
        self.builds_alike = True  # whether all builds had the same backbone so far
        self._dtype_policy = keras.config.dtype_policy()
        self._checked: set[pathlib.Path] = set()
        self._trainings: dict[pathlib.Path, int] = {}

    # --- What a tuner calls -----------------------------------------------------------------

    def build(self, hp: keras_tuner.HyperParameters) -> TransferModel:
        """Builds the model of a trial.

        Args:
            hp: The trial's hyperparameters; those of the search space are registered in it.
        """
        # Tuners clear the session before each trial, which sets the policy back to float32.
        keras.config.set_dtype_policy(self._dtype_policy)
        if self.seed is not None:
            keras.utils.set_random_seed(self.seed)
        model = self.build_model()
        _fit_arguments.check_model(model)
        self.num_groups = len(model.layer_groups)
        compile_if_need_be(model)
        apply_settings(model, self.search_space.sample(hp, self.num_groups))
        set_flags_when_loaded(model)
        self._compare_builds(model)
        return model

    def _compare_builds(self, model: TransferModel) -> None:
        before = self.backbone_digests
        self.backbone_digests = [*digests_of(model.backbone.model).values()]
        self.builds_alike &= before in ([], self.backbone_digests)
        known = set(self.backbone_digests)
        self.built = {n: digest for n, digest in digests_of(model).items() if digest in known}

    def fit(
        self, hp: keras_tuner.HyperParameters, model: TransferModel, *args: Any, **kwargs: Any
    ) -> keras.callbacks.History:
        """Trains the model of a trial under its plan.

        Args:
            hp: The trial's hyperparameters.
            model: What `build` returned.
            *args: What `search` was given: arguments of `TransferModel.fit`.
            **kwargs: As `args`, by name.

        Returns:
            The history, without columns that are no numbers.
        """
        arguments = _fit_arguments.named(args, kwargs)
        callbacks = _fit_checks.as_list(arguments.pop("callbacks", None))
        trial = _trial.trial_of(callbacks)
        with _fatal_errors():
            self._check(hp, model, {**arguments, "callbacks": callbacks}, trial)
        return self.fit_trial(hp, model, trial, callbacks, arguments)

    def fit_trial(
        self,
        hp: keras_tuner.HyperParameters,
        model: TransferModel,
        trial: _trial.Trial | None,
        callbacks: list[keras.callbacks.Callback],
        arguments: dict[str, Any],
    ) -> keras.callbacks.History:
        """Trains a model for which everything has been checked.

        Args:
            hp: The trial's hyperparameters.
            model: What `build` returned.
            trial: The trial, or `None` where no tuner called.
            callbacks: The user's callbacks and the tuner's.
            arguments: The other arguments of `TransferModel.fit`, by name.
        """
        epochs = arguments.pop("epochs", None) or hp.values.get(_trial.EPOCHS)
        plan = self.plan(hp, epochs)
        arguments.setdefault("initial_epoch", hp.values.get(_trial.INITIAL_EPOCH, 0))
        if trial is not None and _trial.TRIAL_BEFORE in hp.values:
            go_on_from(trial.directory_of(hp.values[_trial.TRIAL_BEFORE]), model)
        callbacks = [
            GradualUnfreezing(plan, verbose=0),
            StopWhenNotFinite(plan, [] if trial is None else names_of(trial.objective)),
            *self._with_own_checkpoints(callbacks, trial),
        ]
        if trial is not None:
            callbacks.append(RecordBestEpoch(trial, plan))
        arguments.setdefault("cache_features", self._cache_of(model, plan, arguments))
        history = model.fit(**arguments, epochs=plan.total_epochs, callbacks=callbacks)
        if trial is not None and _trial.EPOCHS in hp.values:
            keep_last_epoch(trial.directory, model)
        return reported(history)

    def plan(self, hp: keras_tuner.HyperParameters, epochs: int | None = None) -> UnfreezingPlan:
        """Returns the plan of a trial.

        Args:
            hp: The trial's hyperparameters.
            epochs: Epochs of the trial; by default what the tuner says, or the search space.
        """
        if not self.num_groups:
            self.build(keras_tuner.HyperParameters())
        epochs = epochs or hp.values.get(_trial.EPOCHS)
        values = self.search_space.sample(hp.copy(), self.num_groups)
        return self.search_space.plan(values, self.num_groups, epochs)

    # --- What came of it ----------------------------------------------------------------------

    def best(self, tuner: keras_tuner.Tuner) -> tuple[TransferModel, UnfreezingPlan]:
        """Returns the best trial's model as it was trained, and the plan that trained it.

        The weights are those of its best epoch, and what trains is what trained in that
        epoch. Trials that failed or were pruned do not count.

        Args:
            tuner: The tuner, after `search`, or made anew on the same project.

        Raises:
            ValueError: If no trial was completed, or the tuner kept no weights of the best one.
        """
        trial = best_trials(tuner, 1)[0]
        try:
            model = tuner.load_model(trial)
        except FileNotFoundError as error:
            raise ValueError(
                f"{type(tuner).__name__} kept no weights of its best trial, {trial.trial_id}. A "
                "`run_trial` of your own has to keep them, as keras_tuner.Tuner.run_trial does. "
                f"Not found: {error.filename or error}"
            ) from error
        record = read_best_epoch(pathlib.Path(tuner.get_trial_dir(trial.trial_id)))
        return model, self.plan(trial.hyperparameters) if record is None else record.plan

    # --- Parts of `fit` -----------------------------------------------------------------------

    def _check(
        self,
        hp: keras_tuner.HyperParameters,
        model: TransferModel,
        arguments: dict[str, Any],
        trial: _trial.Trial | None,
    ) -> None:
        if _fit_checks.plan_carrier(arguments["callbacks"]) is not None:
            raise ValueError(
                "`callbacks` holds a plan, and the search makes the plans. Leave "
                "`GradualUnfreezing` out, and put stages into the `SearchSpace`."
            )
        if trial is None or trial.project_dir in self._checked:
            return
        self.check_search(model, arguments, trial.objective, trial.strategy)
        check_same_search(trial.project_dir, self.search_space, model.layer_groups.names)
        self._checked.add(trial.project_dir)

    def check_search(
        self, model: TransferModel, arguments: dict[str, Any], objective: Any, strategy: Any = None
    ) -> None:
        """Checks a model, the arguments of `search` and the objective against each other.

        Args:
            model: What `build` returned.
            arguments: Of `TransferModel.fit`, by name.
            objective: The `keras_tuner.Objective`.
            strategy: The tuner's distribution strategy.

        Raises:
            ValueError: If they do not go together.
        """
        _fit_arguments.check_strategy(model, strategy)
        _fit_arguments.check_data(arguments, objective)
        check_labels(
            model, arguments.get("x"), arguments.get("y"), arguments.get("validation_data")
        )
        _fit_arguments.check_objective(model, arguments, objective)

    def _cache_of(
        self, model: TransferModel, plan: UnfreezingPlan, arguments: dict[str, Any]
    ) -> bool | str | FeatureCache:
        if self.cache_features is False:
            return False
        return self._shared.cache_for_trial(model, plan, arguments)

    def _with_own_checkpoints(
        self, callbacks: list[keras.callbacks.Callback], trial: _trial.Trial | None
    ) -> list[keras.callbacks.Callback]:
        """Gives each trial a directory of its own in that of a `ResumableTraining`."""
        if trial is None or not any(isinstance(c, ResumableTraining) for c in callbacks):
            return callbacks
        number = self._trainings.get(trial.directory, 0)
        self._trainings[trial.directory] = number + 1
        name = f"trial_{trial.trial_id}-{number}"
        for callback in callbacks:
            if type(callback).__module__.startswith("keras_tuner."):
                # What they know of the best epoch, `RecordBestEpoch` keeps.
                callback.get_state, callback.set_state = dict, lambda state: None
        return [
            ResumableTraining(c.directory / name, c.save_freq, c.keep, c.verbose)
            if isinstance(c, ResumableTraining)
            else c
            for c in callbacks
        ]


def best_trials(tuner: Any, count: int) -> list[Any]:
    """Returns the best trials that were completed, the best first.

    Raises:
        ValueError: If there is none.
    """
    # An oracle fills up with trials that failed, where fewer were completed.
    found = [t for t in tuner.oracle.get_best_trials(count) if t.status == "COMPLETED"]
    if not found:
        raise ValueError(
            "No trial was completed, so there is no best one. Look at why they failed: "
            "tuner.results_summary()."
        )
    return found


@contextlib.contextmanager
def _fatal_errors() -> Iterator[None]:
    """Makes errors end the search, where KerasTuner would count a failed trial and go on."""
    try:
        yield
    except TypeError as error:
        raise keras_tuner.errors.FatalTypeError(str(error)) from error
    except ValueError as error:
        raise keras_tuner.errors.FatalValueError(str(error)) from error
