import json

import hypothesis.strategies as st
import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given

from keras_transfer.schedules import (
    Constant,
    Cosine,
    OneCycle,
    SlantedTriangular,
    WarmupCosine,
    constant,
    cosine,
    one_cycle,
    shape_schedule,
    slanted_triangular,
    warmup_cosine,
)

RISING = {
    OneCycle: one_cycle,
    SlantedTriangular: slanted_triangular,
    WarmupCosine: warmup_cosine,
}
NAMES = ["one_cycle", "slanted_triangular", "warmup_cosine"]
SCHEDULES = [
    Constant(0.3),
    Cosine(0.3, 50, final_fraction=0.1),
    OneCycle(0.3, 50, 0.5, start_ratio=10, final_ratio=100),
    SlantedTriangular(0.3, 50, ratio=8),
    SlantedTriangular(0.3, 2, warmup_steps=1),
    WarmupCosine(0.3, 50, warmup_steps=7, start_fraction=0.2, final_fraction=0.1),
]


@given(
    st.sampled_from(sorted(RISING, key=lambda cls: cls.__name__)),
    st.integers(1, 3000),
    st.floats(0, 1),
    st.floats(0, 1.2),
)
def test_the_graph_computes_what_the_function_does(cls, total, rise, place):
    kwargs = {"total_steps": total, "peak_lr": 0.7, "warmup_steps": int(rise * (total - 1))}
    step = int(place * total)
    assert float(cls(**kwargs)(step)) == pytest.approx(RISING[cls](step, **kwargs), abs=1.5e-7)


def test_cosine_and_constant_compute_what_the_functions_do():
    for step in range(60):
        expected = cosine(step, total_steps=50, peak_lr=0.7, final_fraction=0.2)
        assert float(Cosine(0.7, 50, 0.2)(step)) == pytest.approx(expected, abs=1e-7)
        assert float(Constant(0.7)(step)) == pytest.approx(constant(step, peak_lr=0.7), abs=1e-7)


def test_the_small_rates_at_the_end_keep_their_digits():
    schedule = OneCycle(1.0, 1000)
    for step in (990, 998, 999, 1000):
        expected = one_cycle(step, total_steps=1000, peak_lr=1.0)
        assert float(schedule(step)) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: type(schedule).__name__)
@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_a_compiled_function_follows_the_step(schedule, jit_compile, dtype):
    compiled = tf.function(schedule, jit_compile=jit_compile)
    for step in (0, 1, 7, 49, 50, 10**9):
        rate = compiled(tf.constant(step, dtype))
        assert rate.dtype == tf.float32
        assert float(rate) == pytest.approx(float(schedule(step)), abs=1e-7)


def test_steps_beyond_what_float32_counts_are_still_told_apart():
    total = 2**26
    schedule = Cosine(1.0, total)
    # 2**26 + 2**40 would overflow an int32, and float32 rounds 2**24 + 1.
    assert float(schedule(tf.constant(2**40, "int64"))) == pytest.approx(0, abs=1e-7)
    assert float(schedule(tf.constant(total // 2, "int64"))) == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: type(schedule).__name__)
def test_config_round_trips_through_json(schedule):
    config = json.loads(json.dumps(keras.optimizers.schedules.serialize(schedule)))
    copy = keras.optimizers.schedules.deserialize(config)
    assert type(copy) is type(schedule)
    assert copy.get_config() == schedule.get_config()
    assert [float(copy(t)) for t in range(60)] == [float(schedule(t)) for t in range(60)]


@pytest.mark.usually("1-Cosine", "4-OneCycle", "4-SlantedTriangular1")
@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: type(schedule).__name__)
@pytest.mark.parametrize("steps_per_execution", [1, 4])
def test_an_optimizer_steps_by_the_schedule(schedule, steps_per_execution):
    # The loss is the weight itself, so its gradient is 1 and the weight falls by the rate.
    model = keras.Sequential(
        [keras.Input((1,)), keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros")]
    )
    model.compile(
        keras.optimizers.SGD(schedule),
        loss=lambda y_true, y_pred: y_pred,
        steps_per_execution=steps_per_execution,
    )
    model.fit(np.ones((8, 1)), np.ones((8, 1)), batch_size=1, shuffle=False, verbose=0)
    taken = -float(model.get_weights()[0].item())
    assert taken == pytest.approx(sum(float(schedule(t)) for t in range(8)), abs=1e-5)


def test_a_saved_model_keeps_its_schedule(tmp_path):
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.Adam(OneCycle(0.1, 40)), "mse")
    model.optimizer.build(model.trainable_variables)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.optimizer.get_config()["learning_rate"]["config"] == {
        "peak_lr": 0.1,
        "total_steps": 40,
        "warmup_fraction": 0.25,
        "warmup_steps": None,
        "start_ratio": 25.0,
        "final_ratio": 1e5,
    }


@pytest.mark.parametrize("cls", sorted(RISING, key=lambda cls: cls.__name__))
def test_a_rise_of_no_steps_is_refused_when_the_schedule_is_made(cls):
    with pytest.raises(ValueError, match=r"at least one step for the rise.*total_steps=3"):
        cls(0.1, 3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Constant(-1.0), "`peak_lr` must be finite and at least 0"),
        (lambda: Cosine(0.1, 0), "`total_steps` must be at least 1"),
        (lambda: OneCycle(0.1, 50, start_ratio=0.5), "`start_ratio` must be .*at least 1"),
        (lambda: OneCycle(0.1, 50, final_ratio=0.5), "`final_ratio` must be .*at least 1"),
        (lambda: SlantedTriangular(0.1, 50, ratio=0), "`ratio` must be .*at least 1"),
        (lambda: WarmupCosine(0.1, 50, final_fraction=2), "`final_fraction` must be .*at most 1"),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# --- Shapes of stages -----------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@given(total=st.integers(1, 400), rise=st.none() | st.integers(0, 500))
def test_a_stage_of_any_length_has_a_shape_with_its_peak_at_one(name, total, rise):
    shape = shape_schedule(name, total, rise)
    rates = [float(shape(step)) for step in range(min(total, 5))]
    assert all(0 <= rate <= 1 for rate in rates)
    assert float(shape(shape.warmup_steps)) == 1.0


@pytest.mark.parametrize("name", NAMES)
def test_a_stage_of_one_step_runs_it_at_the_peak(name):
    assert float(shape_schedule(name, 1)(0)) == 1.0


@pytest.mark.parametrize(
    ("name", "first"), [("one_cycle", 0.04), ("slanted_triangular", 1 / 32), ("warmup_cosine", 0)]
)
def test_the_own_share_of_the_schedule_is_spent_rising(name, first):
    shape = shape_schedule(name, 100)
    assert shape.warmup_steps == {"one_cycle": 25}.get(name, 10)
    assert float(shape(0)) == pytest.approx(first)


def test_parameters_reach_the_schedule():
    assert shape_schedule("one_cycle", 100, warmup_fraction=0.4).warmup_steps == 40
    assert float(shape_schedule("one_cycle", 100, start_ratio=10)(0)) == pytest.approx(0.1)


def test_a_constant_shape_is_one_and_has_no_rise():
    assert float(shape_schedule("constant", 3)(2)) == 1.0
    with pytest.raises(ValueError, match=r"no rise and no parameters.*warmup_steps=2"):
        shape_schedule("constant", 10, 2)


def test_an_unknown_shape_names_the_nearest():
    with pytest.raises(ValueError, match="Did you mean 'one_cycle'"):
        shape_schedule("onecycle", 10)
