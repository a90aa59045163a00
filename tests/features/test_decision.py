"""Which stages read cached features, what is said of the others, and what `True` refuses."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_transfer as ktf
from keras_transfer.features import FeatureCache
from tests.features.toys import (
    HEAD_ONLY,
    PLAN,
    assert_same,
    dense_backbone,
    dense_model,
    fit,
    inputs,
    train,
)


def decided(build, cache_features="auto", **arguments):
    """The line that a training prints, whether a pass ran, and the run."""
    run = train(build, cache_features, *inputs(), **arguments)
    assert bool(run.passes) == run.decision.startswith("Feature cache on")
    assert run.printed.count("Feature cache") == (1 if run.decision else 0)
    return run


def refused(message, build, cache_features=True, **arguments):
    before = build()
    weights = before.get_weights()
    with pytest.raises(ValueError, match=message):
        fit(before, *inputs(), cache_features=cache_features, **arguments)
    for a, b in zip(weights, before.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


# --- Stages -----------------------------------------------------------------------------------


def stages(*epochs):
    depths = (1, 2, "all")[: len(epochs)]
    names = ("probe", "top", "all")
    return ktf.UnfreezingPlan(
        [
            ktf.Stage(name, depth=depth, epochs=count)
            for name, depth, count in zip(names, depths, epochs, strict=False)
        ]
    )


@pytest.mark.parametrize(
    ("epochs", "options", "line"),
    [
        ((2, 2), {}, "Feature cache on for stage 'probe' (0.7 kB), stage 'top' (0.7 kB)."),
        (
            (2, 2, 1),
            {},
            (
                "Feature cache on for stage 'probe' (0.7 kB), stage 'top' (0.7 kB); off for stage "
                "'all': nothing before it is frozen."
            ),
        ),
        (
            (1, 2),
            {},
            "Feature cache on for stage 'top' (0.7 kB); off for stage 'probe': has one epoch.",
        ),
        (
            (1, 1),
            {},
            "Feature cache off for stage 'probe': has one epoch; stage 'top': has one epoch.",
        ),
        (
            (2, 2),
            {"initial_epoch": 1},
            "Feature cache on for stage 'top' (0.7 kB); off for stage 'probe': has one epoch.",
        ),
        ((2, 2), {"initial_epoch": 2}, "Feature cache on for stage 'top' (0.7 kB)."),
        ((2, 2), {"epochs": 2}, "Feature cache on for stage 'probe' (0.7 kB)."),
        (
            (2, 2),
            {"epochs": 3},
            "Feature cache on for stage 'probe' (0.7 kB); off for stage 'top': has one epoch.",
        ),
    ],
)
def test_a_stage_is_cached_that_reads_its_features_at_least_twice(epochs, options, line):
    assert decided(dense_model, plan=stages(*epochs), **options).decision == line


def test_on_demand_a_stage_of_one_epoch_is_cached_too():
    run = decided(dense_model, True, plan=stages(1, 1))
    assert run.decision == "Feature cache on for stage 'probe' (0.7 kB), stage 'top' (0.7 kB)."
    assert_same(run, decided(dense_model, False, plan=stages(1, 1)))


@pytest.mark.exhaustive
def test_a_fit_without_a_plan_is_one_stage():
    def build():
        model = dense_model()
        model.freeze()
        return model

    run = decided(build, epochs=2)
    assert run.decision == "Feature cache on for training (0.7 kB)."
    assert_same(run, decided(build, False, epochs=2))
    assert decided(build, epochs=1).decision == "Feature cache off for training: has one epoch."
    # Thawed in between, and the next `fit` starts at another boundary.
    model = run.model
    model.freeze_to(2)
    assert fit(model, *inputs(), epochs=2).passes == ["training"]
    model.unfreeze()
    thawed = fit(model, *inputs(), epochs=2)
    assert (thawed.decision, thawed.passes) == ("", [])


def test_nothing_frozen_is_nothing_to_say_and_nothing_to_insist_on():
    assert decided(dense_model, epochs=2).decision == ""
    refused(
        r"Features cannot be cached: no stage leaves the first layer group frozen. Pass "
        r"cache_features=False.",
        dense_model,
        epochs=2,
    )


def test_quiet_is_quiet():
    run = train(dense_model, "auto", *inputs(), plan=PLAN, verbose=0)
    assert run.printed == ""
    cache = FeatureCache()
    assert train(dense_model, cache, *inputs(), plan=PLAN, verbose=0).printed == ""
    assert cache.nbytes == 2 * 22 * 8 * 4


def test_the_argument_is_checked():
    with pytest.raises(ValueError, match=r"must be 'auto', True, False, or a `FeatureCache`. Rec"):
        fit(dense_model(), *inputs(), cache_features="always")


# --- What trains early and is frozen later ----------------------------------------------------


@pytest.mark.usually("<lambda>-trains2-1")
@pytest.mark.parametrize(
    ("make_cache", "trains", "passes"),
    [
        (lambda: "auto", (["head"], ["stem", "head"], ["head"]), 2),
        (FeatureCache, (["head"], ["stem", "head"], ["head"]), 2),
        (lambda: "auto", (["stem", "head"], ["head"]), 1),
        (lambda: "auto", (["top", "head"], ["mid", "head"], ["top", "head"]), 2),
        (FeatureCache, (["mid"], ["top"], ["mid"]), 2),
    ],
)
def test_what_trained_since_is_run_again(make_cache, trains, passes):
    plan = ktf.UnfreezingPlan(
        [
            ktf.Stage(str(number), train=groups, epochs=2, peak_lr=1e-1)
            for number, groups in enumerate(trains)
        ]
    )
    run = train(dense_model, make_cache(), *inputs(), plan=plan, shuffle=False)
    assert run.passes == ["training"] * passes
    assert_same(run, train(dense_model, False, *inputs(), plan=plan, shuffle=False))


# --- Layers -----------------------------------------------------------------------------------


@keras.saving.register_keras_serializable(package="tests")
class Noisy(keras.layers.Layer):
    """Draws random numbers in inference, too."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seed_generator = keras.random.SeedGenerator(1)

    def call(self, x):
        return x + keras.random.normal(keras.ops.shape(x), stddev=1e-3, seed=self.seed_generator)


class TensorFlowNoise(keras.layers.Layer):
    """Draws random numbers without a seed of its own."""

    def call(self, x):
        return x + tf.random.normal(tf.shape(x), stddev=1e-3)


class Counting(keras.layers.Layer):
    """Remembers how often it ran."""

    def build(self, shape):
        self.count = self.add_weight(shape=(), initializer="zeros", trainable=False)

    def call(self, x):
        self.count.assign_add(1.0)
        return x + 1e-3 * self.count


class Punishing(keras.layers.Layer):
    """Adds to the loss."""

    def call(self, x):
        self.add_loss(keras.ops.mean(x**2))
        return x


def with_layer(layer, after):
    def build():
        x = start = keras.Input((6,))
        for dense in dense_backbone().layers:
            x = dense(x)
            if dense.name == after:
                x = layer()(x)
        return dense_model(keras.Model(start, x, name="body"))

    return build


NOT_DETERMINISTIC = r"the frozen part of the model is not deterministic \(it runs {}\)"


@pytest.mark.usually("Keras noise", "counts")
@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (Noisy, NOT_DETERMINISTIC.format(r"(StatelessRandom\w+|AssignVariableOp)")),
        (TensorFlowNoise, NOT_DETERMINISTIC.format("RandomStandardNormal")),
        (Counting, NOT_DETERMINISTIC.format("AssignVariableOp")),
        (Punishing, r"a frozen layer adds to the loss when it runs \(activity_regul.* add_loss\)"),
    ],
    ids=["Keras noise", "TensorFlow noise", "counts", "add_loss"],
)
def test_a_layer_that_would_not_do_the_same_each_time(layer, reason):
    build = with_layer(layer, "stem")
    run = decided(build, plan=PLAN)
    line = f"Feature cache off for stage 'probe': {reason}; stage 'top': {reason}."
    assert re.fullmatch(line, run.decision), run.decision
    refused(f"Features cannot be cached: {reason}. Pass cache_features=False.", build, plan=PLAN)


def test_a_random_layer_spoils_only_what_lies_behind_it():
    build = with_layer(Noisy, "top")
    run = decided(build, plan=PLAN)
    assert re.fullmatch(
        r"Feature cache on for stage 'top' \(0.7 kB\); off for stage 'probe': the frozen part of "
        r"the model is not deterministic \(it runs \w+\).",
        run.decision,
    )
    assert_same(run, decided(build, False, plan=PLAN))


class Subclassed(keras.Model):
    """A backbone whose graph is not known."""

    def __init__(self):
        super().__init__(name="subclassed")
        self.dense = keras.layers.Dense(8, "tanh")

    def call(self, x):
        return self.dense(x)


def test_a_backbone_that_is_not_functional():
    def build():
        backbone = Subclassed()
        backbone(np.zeros((1, 6), "float32"))
        model = ktf.TransferModel(backbone, keras.layers.Dense(2, name="head"))
        model(np.zeros((1, 6), "float32"))
        model.compile("sgd", "mse")
        model.freeze()
        return model

    reason = (
        "the backbone 'subclassed' is not a functional model, so it has no boundaries to start from"
    )
    assert decided(build, epochs=2).decision == f"Feature cache off: {reason}."
    refused(f"Features cannot be cached: {reason}. Pass cache_features=False.", build, epochs=2)


# --- Room -------------------------------------------------------------------------------------


def widening():
    """Features behind 'stem' take 22 * 40 * 4 = 3,520 bytes, at the top 22 * 8 * 4 = 704."""
    start = keras.Input((6,))
    x = keras.layers.Dense(40, "tanh", name="stem")(start)
    return dense_model(keras.Model(start, keras.layers.Dense(8, "tanh", name="top")(x)))


@pytest.mark.exhaustive
def test_features_beyond_the_budget_are_not_kept(monkeypatch):
    monkeypatch.setattr("keras_transfer.features.cache.DEFAULT_MAX_BYTES", 4000)
    run = decided(widening, plan=PLAN)
    assert run.decision == (
        "Feature cache on for stage 'probe' (0.7 kB); off for stage 'top': its features would take "
        "3.5 kB of 4.0 kB."
    )
    assert_same(run, decided(widening, False, plan=PLAN))
    monkeypatch.setattr("keras_transfer.features.cache.DEFAULT_MAX_BYTES", 4500)
    assert "stage 'top' (3.5 kB)." in decided(widening, plan=PLAN).decision
    # Validation data takes its share: 10 examples for 22.
    run = decided(widening, plan=PLAN, validation_data=inputs(10))
    assert "off for stage 'top': its features would take 5.1 kB of 4.5 kB." in run.decision
    assert "on for stage 'probe' (1.0 kB)" in run.decision


def test_a_budget_of_the_users_own_is_an_order():
    refused(
        r"Features cannot be cached: its features would take 3.5 kB of 1.0 kB. Raise "
        r"FeatureCache\(max_bytes=...\), give it a directory, or pass cache_features=False.",
        widening,
        FeatureCache(max_bytes=1000),
        plan=PLAN,
    )
    run = decided(widening, FeatureCache(max_bytes=4224), plan=PLAN)
    assert run.decision == "Feature cache on for stage 'probe' (0.7 kB), stage 'top' (3.5 kB)."


def of_unknown_size():
    parts = [tf.data.Dataset.from_tensors(inputs(size, seed=size)) for size in (4, 9, 9)]
    return parts[0].concatenate(parts[1]).concatenate(parts[2])


def test_features_whose_size_is_not_known_before_stop_at_the_budget(monkeypatch):
    monkeypatch.setattr("keras_transfer.features.cache.DEFAULT_MAX_BYTES", 700)
    run = train(dense_model, "auto", of_unknown_size(), plan=HEAD_ONLY)
    assert "Feature cache on for stage 'probe'." in run.printed
    assert "Feature cache off: the features take more than 700 bytes." in run.printed
    assert_same(run, train(dense_model, False, of_unknown_size(), plan=HEAD_ONLY))
    cache = FeatureCache(max_bytes=700)
    with pytest.raises(ValueError, match="the features take more than 700 bytes"):
        train(dense_model, cache, of_unknown_size(), plan=HEAD_ONLY)
    assert cache.nbytes == 0
