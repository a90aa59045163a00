"""Optimizer state crosses stages in files: it lies there by variable path, not by position."""

import keras
import numpy as np
import pytest

import keras_transfer as ktf
from keras_transfer.optimizers import find_discriminative

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(32, 6)).astype("float32")
Y = RANDOM.normal(size=(32, 2)).astype("float32")
PROBE = ktf.Stage("probe", depth=1, epochs=2, peak_lr=1e-2)
TOP = ktf.Stage("top", depth=2, epochs=2, peak_lr=1e-2, lr_decay=0.5)
ALL = ktf.Stage("all", depth="all", epochs=2, peak_lr=5e-3, lr_decay=0.5)

OPTIMIZERS = {
    "nadam": keras.optimizers.Nadam,
    "accumulation": lambda: keras.optimizers.AdamW(gradient_accumulation_steps=3),
    "loss scaling": lambda: keras.optimizers.LossScaleOptimizer(
        keras.optimizers.Adam(), initial_scale=8.0, dynamic_growth_steps=3
    ),
}


def make_model(optimizer, seed=0):
    keras.utils.set_random_seed(seed)
    backbone = keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(8, "tanh", name="stem"),
            keras.layers.Dense(8, "tanh", name="mid"),
        ],
        name="backbone",
    )
    head = keras.layers.Dense(2, dtype="float32", name="new")
    model = ktf.TransferModel(backbone, head, groups="blocks", name="model")
    model.compile(OPTIMIZERS[optimizer](), "mse")
    return model


def run(model, *stages):
    plan = ktf.UnfreezingPlan(stages)
    unfreezing = ktf.callbacks.GradualUnfreezing(plan, verbose=0)
    model.fit(X, Y, batch_size=4, shuffle=False, verbose=0, callbacks=[unfreezing])


def assert_equal(model, other):
    for a, b in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    steps = [find_discriminative(m.optimizer).group_steps for m in (model, other)]
    assert steps[0] == steps[1]


@pytest.mark.usually("accumulation")
@pytest.mark.parametrize("optimizer", ["accumulation", "loss scaling"])
def test_a_file_of_one_stage_is_loaded_in_any_other(optimizer, tmp_path):
    path = tmp_path / "model.weights.h5"
    model = make_model(optimizer)
    run(model, PROBE, TOP)
    model.save_weights(path)
    run(model, ALL)

    # Everything trains here before the file, in which the stem has no state yet, is loaded.
    wider = make_model(optimizer, seed=1)
    run(wider, ALL)
    wider.load_weights(path)
    steps = find_discriminative(wider.optimizer).group_steps
    assert steps["stem"] == 0
    assert 0 < steps["mid"] < steps["new"]
    run(wider, ALL)
    assert_equal(model, wider)

    if optimizer == "accumulation":
        return  # what the middle had gathered of an update is dropped where it is frozen
    # The head alone trains here: the state of the middle waits until it trains again.
    narrower = make_model(optimizer, seed=1)
    narrower.freeze()
    narrower.optimizer.build(narrower.trainable_variables)
    narrower.load_weights(path)
    run(narrower, ALL)
    assert_equal(model, narrower)


def test_under_mixed_float16_late_groups_train_and_are_saved(tmp_path):
    keras.config.set_dtype_policy("mixed_float16")
    model = make_model("nadam")
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    before = model.get_weights()
    run(model, PROBE)
    run(model, TOP)
    inner = find_discriminative(model.optimizer)
    assert inner.group_steps == {"stem": 0, "mid": 16, "new": 32}
    after = model.get_weights()
    moved = [float(np.abs(a - b).max()) for a, b in zip(before, after, strict=True)]
    assert moved[:2] == [0.0, 0.0]
    assert min(moved[2:]) > 1e-3
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    scales = [float(m.optimizer.dynamic_scale.numpy()) for m in (model, loaded)]
    assert scales[0] == scales[1]
    for each in (model, loaded):
        run(each, ALL)
    assert_equal(model, loaded)
