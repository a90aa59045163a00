"""`compare`: does transfer help on this task? Trains with each strategy and from scratch."""

from __future__ import annotations

import gc
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import keras

from keras_transfer import _checks
from keras_transfer._fresh_weights import reinitialize
from keras_transfer._label_checks import label_check, takes_class_ids
from keras_transfer._task_data import Part, as_part, check_classes, read_through, reading
from keras_transfer._test_scores import checked_seeds, find_metric, find_mode, score_on
from keras_transfer.callbacks import GradualUnfreezing
from keras_transfer.features import FeatureCache
from keras_transfer.model import TransferModel
from keras_transfer.plan import UnfreezingPlan
from keras_transfer.recipes import plans
from keras_transfer.recipes.comparison import SCRATCH, Comparison

STRATEGIES = (SCRATCH, "linear_probe", "lp_ft", "gradual_unfreezing", "full_fine_tuning")
# From scratch everything is new, as the head is elsewhere, so it takes the head's rate.
_SCRATCH_LR = 1e-3


def compare(
    model_fn: Callable[[], TransferModel],
    data: Any,
    strategies: Sequence[str] | Mapping[str, UnfreezingPlan] = STRATEGIES,
    seeds: int | Sequence[int] = 5,
    *,
    epochs: int = 10,
    batch_size: int = 32,
    metric: str | None = None,
    mode: str = "auto",
    margin: float = 0.01,
    confidence: float = 0.95,
    cache_features: Any = "auto",
    verbose: int = 1,
) -> Comparison:
    """Trains with each strategy and from scratch, over several seeds, and says what helps.

    Use it to know whether a backbone helps on your task, by how much, and what it costs,
    before you rely on it. It can find that transfer hurts, that it makes no difference, and
    that these runs cannot tell.

    All strategies of one seed get the same new head and, from arrays, the same order of
    examples, so differences are taken seed by seed. (A `tf.data.Dataset` that shuffles has
    another order each time it is read, which widens the intervals.) From scratch, the same
    architecture trains from random weights, with BatchNorm statistics that move, for as many
    epochs.

    It sets the global random seed, for each run.

    Args:
        model_fn: Makes a compiled `TransferModel` with pretrained weights, a new one at
            each call: load the backbone inside.
        data: `(train, test)` or `(train, validation, test)`, each a tuple of arrays
            `(inputs, labels)`, a batched `tf.data.Dataset` or a `PyDataset`; or a function
            of the seed that returns these (a few-shot draw, say). All are looked through
            once for what would spoil hours of training: values that are not finite, labels
            out of range, missing classes.
        strategies: Names out of `"scratch"`, `"linear_probe"`, `"lp_ft"`,
            `"gradual_unfreezing"` and `"full_fine_tuning"`, with the recipes' rates (from
            scratch 1e-3); or the plan of each strategy by any name. `"scratch"` has to be
            one of them.
        seeds: Number of seeds, or the seeds. With one nothing can be told; few give
            wide intervals.
        epochs: Length of each named strategy, in epochs. Plans have their own.
        batch_size: Examples per step, where data is arrays.
        metric: Name of the metric to compare by, as `evaluate` reports it. `None` takes the
            first of `compile(metrics=...)`, or the loss.
        mode: `"max"` where higher is better, `"min"` where lower is, `"auto"` as Keras
            knows it.
        margin: Differences within plus or minus this do not count, in units of the metric.
        confidence: Probability that all intervals hold, in (0, 1).
        cache_features: As in `TransferModel.fit`, for strategies that freeze; a
            `keras_transfer.features.FeatureCache` is shared by all seeds.
        verbose: 0 is silent; 1 prints a line for each run, and the report.

    Returns:
        Scores, times and the verdict; print it, or draw it with
        `keras_transfer.plotting.plot_comparison`.

    Raises:
        TypeError: If an argument has another type.
        ValueError: Before any training, if strategies, seeds, data or metric do not fit;
            if `model_fn` returns the same backbone again; if a score is not finite.

    Example:

    ```python
    import keras, numpy as np
    import keras_transfer as ktf

    def model_fn():
        backbone = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, "relu")])
        model = ktf.TransferModel(backbone, ktf.layers.ClassificationHead(num_classes=2))
        model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
        return model

    x, y = np.random.normal(size=(64, 4)), np.arange(64) % 2
    data = (x[:32], y[:32]), (x[32:], y[32:])
    found = ktf.recipes.compare(model_fn, data, ["scratch", "linear_probe"], seeds=1, epochs=2)
    print(found.verdict)
    ```

    Reference:
        - [Wang et al., 2019](https://arxiv.org/abs/1811.09751), negative transfer
        - [Kornblith et al., 2019](https://arxiv.org/abs/1805.08974), gains over scratch
    """
    if not callable(model_fn) or isinstance(model_fn, keras.Model):
        raise TypeError(
            "`model_fn` must be a function that makes a compiled `TransferModel`. Received: "
            f"model_fn={model_fn!r}"
        )
    names = _checked_strategies(strategies)
    seeds = checked_seeds(seeds)
    epochs = _checks.integer(epochs, "epochs", minimum=1)
    batch_size = _checks.integer(batch_size, "batch_size", minimum=1)
    _checks.choice(mode, "mode", ["auto", "max", "min"])
    # The rest of what `Comparison` checks, before work instead of after it.
    Comparison(
        "", "max", (), dict.fromkeys(names, ()), dict.fromkeys(names, ()), margin, confidence
    )
    runs = _Runs(model_fn, data, batch_size, cache_features)
    runs.prepare(seeds[0], metric, mode)
    planned = {
        name: strategies[name]
        if isinstance(strategies, Mapping)
        else _plan_of(name, epochs, runs.n_groups)
        for name in names
    }
    scores: dict[str, list[float]] = {name: [] for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number, seed in enumerate(seeds):
        for place, (name, plan) in enumerate(planned.items()):
            score, time_taken = runs.run(name, plan, seed)
            scores[name].append(score)
            seconds[name].append(time_taken)
            if verbose:
                print(
                    f"[{number * len(names) + place + 1} of {len(seeds) * len(names)}] {name}, "
                    f"seed {seed}: {runs.metric} {score:.3f} in {time_taken:.1f} s",
                    flush=True,
                )
    found = Comparison(
        metric=runs.metric,
        mode=runs.mode,
        seeds=tuple(seeds),
        scores={name: tuple(values) for name, values in scores.items()},
        seconds={name: tuple(values) for name, values in seconds.items()},
        margin=margin,
        confidence=confidence,
    )
    if verbose:
        print(found)
    return found


class _Runs:
    """Makes models, trains them and tests them, all in one way.

    Args:
        model_fn: As in `compare`.
        data: As in `compare`.
        batch_size: As in `compare`.
        cache_features: As in `compare`.
    """

    def __init__(
        self, model_fn: Callable[[], Any], data: Any, batch_size: int, cache_features: Any
    ) -> None:
        self._model_fn = model_fn
        self._data = data
        self._batch_size = batch_size
        self._cache_features = cache_features
        self._parts: tuple[int, list[Part]] | None = None
        self._seen: list[weakref.ref[Any]] = []
        self._waiting: TransferModel | None = None
        self._checked: int | None = None  # the seed whose data was looked at last
        self.metric, self.mode, self.n_groups = "", "", 0

    def prepare(self, seed: int, metric: str | None, mode: str) -> None:
        """Checks data and model against each other, and finds the metric."""
        parts = self._parts_of(seed)
        model = self._make(seed)
        self.n_groups = len(model.layer_groups)
        self._check_parts(model, parts)
        self._checked = seed
        self.metric = find_metric(model, parts[-1], metric)
        self.mode = find_mode(model, self.metric, mode)
        # The first run needs a model of this seed; loading a backbone twice may take long.
        self._waiting = model

    def _parts_of(self, seed: int) -> list[Part]:
        if self._parts is not None and (self._parts[0] == seed or not callable(self._data)):
            return self._parts[1]
        given = self._data(seed) if callable(self._data) else self._data
        if not isinstance(given, tuple | list) or len(given) not in (2, 3):
            raise TypeError(
                "`data` must be (train, test) or (train, validation, test), or a function of the "
                f"seed that returns these. Received: {type(given).__name__}"
                + (f" of {len(given)}" if isinstance(given, tuple | list) else "")
            )
        names = ["training", "validation", "test"] if len(given) == 3 else ["training", "test"]
        parts = [as_part(part, f"The {name} data") for part, name in zip(given, names, strict=True)]
        self._parts = (seed, parts)
        return parts

    @staticmethod
    def _check_parts(model: TransferModel, parts: list[Part]) -> None:
        names = ["training", "validation", "test"]
        class_ids = []
        for part, name in zip(parts, names if len(parts) == 3 else names[::2], strict=True):
            check = label_check(model, f"in the {name} data")
            class_ids.append(read_through(part, f"The {name} data", check))
        if takes_class_ids(model):
            check_classes(class_ids[0], class_ids[-1])

    def _make(self, seed: int) -> TransferModel:
        keras.utils.set_random_seed(seed)
        model = self._model_fn()
        if not isinstance(model, TransferModel):
            raise TypeError(
                "`model_fn` must return a `TransferModel`. Received: "
                f"{model!r} of type {type(model).__name__}. Wrap a backbone and a head: "
                "TransferModel(backbone, head)."
            )
        if not model.compiled:
            raise ValueError(
                "`model_fn` must return a compiled model. Call `model.compile(...)` in it."
            )
        # By a weight: another model may have been made around the same layers.
        weight = model.backbone.model.weights[0].value
        if any(reference() is weight for reference in self._seen):
            raise ValueError(
                f"`model_fn` returned the backbone {model.backbone.model.name!r} a second time, "
                "with what the run before has made of its weights. Build or load the backbone "
                "inside `model_fn`."
            )
        self._seen.append(weakref.ref(weight))
        return model

    def run(self, name: str, plan: UnfreezingPlan, seed: int) -> tuple[float, float]:
        """Trains and tests once; returns the score and the seconds that training took."""
        parts = self._parts_of(seed)
        model, self._waiting = self._waiting or self._make(seed), None
        cache = self._cache_features
        if name == SCRATCH:
            reinitialize(model.backbone.model)
            # Random layers have no statistics that could be kept.
            model.backbone.batch_norm = "train"
            cache = False
        elif plan.stages[0].depth == "all" and (cache is True or isinstance(cache, FeatureCache)):
            cache = False  # nothing is frozen that could be kept
        if callable(self._data) and seed != self._checked:
            self._check_parts(model, parts)
            self._checked = seed
        train, test = parts[0], parts[-1]
        options = reading(train, self._batch_size)
        if len(parts) == 3:
            validation = parts[1]
            options["validation_data"] = validation if len(validation) > 1 else validation[0]
        if len(train) == 1:
            options["shuffle"] = False  # a data set shuffles itself
        keras.utils.set_random_seed(seed)
        start = time.perf_counter()
        model.fit(
            callbacks=[GradualUnfreezing(plan, verbose=0)],
            verbose=0,
            cache_features=cache,
            **options,
        )
        seconds = time.perf_counter() - start
        what = f"Strategy {name!r} with seed {seed}"
        score = score_on(model, test, self.metric, self._batch_size, what)
        del model
        gc.collect()  # models and their traced functions hold each other
        return score, seconds


def _plan_of(name: str, epochs: int, n_groups: int) -> UnfreezingPlan:
    """Returns the recipe of a named strategy, in as many epochs as all others take."""
    if name == SCRATCH:
        return plans.full_fine_tuning(epochs, peak_lr=_SCRATCH_LR)
    if name == "linear_probe":
        return plans.linear_probe(epochs)
    if name == "full_fine_tuning":
        return plans.full_fine_tuning(epochs)
    stages = 2 if name == "lp_ft" else min(3, n_groups)
    if epochs < stages:
        raise ValueError(
            f"Strategy {name!r} has {stages} stages of at least one epoch. Received: "
            f"epochs={epochs}. Raise `epochs`, or leave the strategy out."
        )
    if name == "lp_ft":
        return plans.lp_ft(epochs // 2, epochs - epochs // 2)
    each = max(1, epochs // 2 // (stages - 1))
    return plans.gradual_unfreezing(stages, each, epochs - each * (stages - 1))


def _checked_strategies(strategies: Any) -> list[str]:
    if isinstance(strategies, str) or not isinstance(strategies, Iterable):
        raise TypeError(
            "`strategies` must be a list of names, or map names to plans. Received: "
            f"strategies={strategies!r}"
        )
    names = list(strategies)
    if isinstance(strategies, Mapping):
        for name, plan in strategies.items():
            if not isinstance(name, str) or not isinstance(plan, UnfreezingPlan):
                raise TypeError(
                    "`strategies` must map names to `UnfreezingPlan`s. Received: "
                    f"{name!r}: {plan!r}"
                )
    else:
        for name in names:
            _checks.choice(name, "strategies", STRATEGIES)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"`strategies` must differ. Received twice: {', '.join(map(repr, twice))}")
    if SCRATCH not in names or len(names) < 2:
        raise ValueError(
            f"`strategies` must hold {SCRATCH!r}, which the others are compared with, and at least "
            f"one other. Received: {', '.join(map(repr, names)) or 'none'}"
        )
    return names
