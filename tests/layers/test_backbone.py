import keras
import numpy as np
import pytest

import keras_transfer as ktf
from keras_transfer.layers import PretrainedBackbone
from tests.test_layer_groups import masked_lstm, transformer


def normalized(dropout=0.0):
    return keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(8, "tanh", name="stem"),
            keras.layers.BatchNormalization(name="bn_1"),
            keras.layers.Dense(8, "tanh", name="top"),
            keras.layers.BatchNormalization(name="bn_2"),
            keras.layers.Dropout(dropout, name="dropout"),
        ]
    )


def inputs_of(model):
    generator = np.random.default_rng(0)
    ids = generator.integers(1, 20, size=(3, 5)).astype("int32")
    ids[:, 3:] = 0
    return {"ids": ids, "mask": ids > 0} if len(model.inputs) == 2 else ids


@pytest.mark.parametrize("make", [masked_lstm, transformer])
def test_running_from_any_boundary_equals_the_whole_run(make):
    model = make()
    backbone = PretrainedBackbone(model, groups="blocks")
    inputs = inputs_of(model)
    whole = model(inputs).numpy()
    assert np.ptp(whole) > 1e-3
    np.testing.assert_array_equal(backbone(inputs).numpy(), whole)
    starts = range(1, len(backbone.layer_groups) + 1)
    for start, features in backbone.features_at(inputs, starts).items():
        given = features if len(features) > 1 else features[0]
        np.testing.assert_array_equal(backbone(given, start=start).numpy(), whole)


def test_a_backbone_is_the_same_after_saving_and_loading(tmp_path):
    backbone = PretrainedBackbone(
        normalized(), groups=2, preprocess=keras.layers.Rescaling(0.5), name="body"
    )
    inputs = keras.Input((6,))
    model = keras.Model(inputs, backbone(inputs))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    x = np.random.default_rng(0).normal(size=(3, 6)).astype("float32")
    np.testing.assert_array_equal(loaded(x).numpy(), model(x).numpy())
    assert loaded.get_layer("body").layer_groups.names == backbone.layer_groups.names


def test_an_unknown_policy_is_an_error():
    with pytest.raises(ValueError, match="Did you mean 'inference'"):
        PretrainedBackbone(normalized(), batch_norm="inferense")


def test_weights_of_preprocess_never_train():
    scale = keras.Sequential([keras.Input((6,)), keras.layers.Dense(6, name="scale")])
    backbone = PretrainedBackbone(normalized(), preprocess=scale)
    model = ktf.TransferModel(backbone, keras.layers.Dense(1, name="new"))
    model.compile("adam", "mse")
    model.backbone.trainable = True
    before = scale.get_weights()
    x, y = np.random.normal(size=(8, 6)).astype("float32"), np.ones((8, 1))
    model.fit(x, y, verbose=0)
    model.unfreeze()
    plan = ktf.UnfreezingPlan([ktf.Stage("all", depth="all", epochs=1)])
    model.fit(x, y, verbose=0, callbacks=[ktf.callbacks.GradualUnfreezing(plan, verbose=0)])
    for old, new in zip(before, scale.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_a_start_without_the_inputs_that_are_still_read_is_an_error():
    backbone = PretrainedBackbone(transformer(), groups="blocks")
    (features, mask), *_ = backbone.features_at(inputs_of(backbone.model), [1]).values()
    assert mask.shape == (3, 5)
    message = r"start=1 takes the features and 1 of the model's inputs\. Received 0 beside"
    with pytest.raises(ValueError, match=message):
        backbone(features, start=1)
