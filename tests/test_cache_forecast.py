"""The feature cache's forecast, against multiply-adds counted by hand and published ones."""

import keras
import numpy as np
import pytest

import keras_transfer as ktf
from keras_transfer._functional_graph import FunctionalGraph
from keras_transfer._multiply_adds import multiply_adds


def small_images():
    return keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            keras.layers.Conv2D(4, 3, strides=2, padding="same", name="stem"),
            keras.layers.Conv2D(6, 1, name="middle"),
            keras.layers.Conv2D(8, 1, strides=2, name="top"),
        ]
    )


def test_multiply_adds_are_those_of_the_layers():
    inputs = keras.Input((8, 8, 4))
    x = keras.layers.Conv2D(6, 3, strides=2, padding="same")(inputs)  # 4x4 positions
    x = keras.layers.DepthwiseConv2D(3, padding="same")(x)
    x = keras.layers.Conv2D(6, 3, groups=2, padding="same")(x)
    x = keras.layers.Reshape((16, 6))(x)
    x = keras.layers.LSTM(5)(x)
    model = keras.Model(inputs, keras.layers.Dense(7)(x))
    counts = [count for count in multiply_adds(FunctionalGraph(model)) if count]
    lstm = 16 * (6 * 4 * 5 + 5 * 4 * 5)
    assert counts == [16 * 9 * 4 * 6, 16 * 9 * 6, 16 * 9 * 3 * 6, lstm, 5 * 7]


def test_an_embedding_is_looked_up_and_not_multiplied():
    model = keras.Sequential([keras.Input((5,), dtype="int32"), keras.layers.Embedding(9, 4)])
    assert sum(multiply_adds(FunctionalGraph(model))) == 0


def test_mobilenet_v2_has_its_published_300_million_and_known_shares():
    backbone = keras.applications.MobileNetV2(
        weights=None, include_top=False, input_shape=(224, 224, 3)
    )
    model = ktf.TransferModel(backbone, ktf.layers.ClassificationHead(10), groups="blocks")
    assert sum(multiply_adds(model.backbone.graph)) == pytest.approx(300e6, rel=0.01)
    plan = ktf.UnfreezingPlan([ktf.Stage("probe", depth=1, epochs=5)])
    found = {b.after: b for b in ktf.describe(model, plan, examples=10).cache.boundaries}
    # Counted layer by layer with another tool.
    shares = {"block_2_expand": 0.253, "block_5_expand": 0.378, "block_15_expand": 0.856}
    for after, share in shares.items():
        assert found[after].share == pytest.approx(share, abs=1e-3)
    assert found["pooled"].bytes_per_example == 1280 * 4
    assert found["Conv_1"].bytes_per_example == 7 * 7 * 1280 * 4


def test_the_forecast_is_what_a_run_then_stores():
    model = ktf.TransferModel(small_images(), ktf.layers.ClassificationHead(3), groups="blocks")
    model.compile("adam", "sparse_categorical_crossentropy")
    plan = ktf.UnfreezingPlan(
        [ktf.Stage("probe", depth=1, epochs=2), ktf.Stage("top", depth=2, epochs=2)]
    )
    forecast = ktf.describe(model, plan, examples=20).cache
    cache = ktf.features.FeatureCache()
    model.fit(
        np.random.default_rng(0).normal(size=(20, 8, 8, 3)),
        np.arange(20) % 3,
        verbose=0,
        cache_features=cache,
        callbacks=[ktf.callbacks.GradualUnfreezing(plan, verbose=0)],
    )
    read = [boundary for boundary in forecast.boundaries if boundary.stages]
    assert [boundary.after for boundary in read] == ["middle", "pooled"]
    assert cache.nbytes == sum(20 * boundary.bytes_per_example for boundary in read)


def test_the_saving_is_counted_as_the_formula_says():
    model = ktf.TransferModel(small_images(), ktf.layers.ClassificationHead(3), groups="blocks")
    plan = ktf.UnfreezingPlan(
        [ktf.Stage("probe", depth=1, epochs=10), ktf.Stage("top", depth=2, epochs=1)]
    )
    forecast = ktf.describe(model, plan, examples=20).cache
    # stem 16*108, middle 16*24, top 4*48; `top` trains one epoch and so reads the inputs.
    before_top = (16 * 108 + 16 * 24) / (16 * 108 + 16 * 24 + 4 * 48)
    one_epoch = before_top + 3 * (1 - before_top)
    assert forecast.speedup == pytest.approx((10 + one_epoch) / (1 + one_epoch))
    assert [b.stages for b in forecast.boundaries] == [(), (), (), ("probe",)]


@pytest.mark.parametrize(("steps", "advice"), [(None, 16), (100, 16), (9, 8), (1, None)])
def test_steps_per_execution_is_recommended_where_only_the_head_is_left(steps, advice):
    model = ktf.TransferModel(small_images(), ktf.layers.ClassificationHead(3))
    plan = ktf.UnfreezingPlan([ktf.Stage("probe", depth=1, epochs=2)])
    described = ktf.describe(model, plan, examples=20, steps_per_epoch=steps)
    assert described.cache.steps_per_execution == advice
    assert (f"steps_per_execution={advice})" in str(described)) == (advice is not None)
    full = ktf.UnfreezingPlan([ktf.Stage("all", depth="all", epochs=2)])
    described = ktf.describe(model, full, examples=20, steps_per_epoch=steps)
    assert described.cache.steps_per_execution is None
    assert described.cache.speedup == 1.0


def test_the_number_of_examples_is_checked():
    model = ktf.TransferModel(small_images(), ktf.layers.ClassificationHead(3))
    with pytest.raises(ValueError, match="`examples` must be at least 1"):
        ktf.describe(model, ktf.recipes.lp_ft(), examples=0)
