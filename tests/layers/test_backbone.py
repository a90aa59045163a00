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


def trained(batch_norm, depth):
    keras.utils.set_random_seed(0)
    backbone = PretrainedBackbone(normalized(), groups="blocks", batch_norm=batch_norm)
    model = ktf.TransferModel(backbone, keras.layers.Dense(2, "softmax", name="new"))
    model.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy")
    before = [[v.numpy() for v in bn.weights] for bn in backbone.batch_norms]
    plan = ktf.UnfreezingPlan([ktf.Stage("s", depth=depth, epochs=1)])
    x = np.random.normal(3, 2, size=(16, 6)).astype("float32")
    callback = ktf.callbacks.GradualUnfreezing(plan, verbose=0)
    model.fit(x, np.arange(16) % 2, verbose=0, callbacks=[callback])
    moved = [
        {v.name: not np.array_equal(a, v.numpy()) for a, v in zip(old, bn.weights, strict=True)}
        for old, bn in zip(before, backbone.batch_norms, strict=True)
    ]
    return [(m["gamma"] or m["beta"], m["moving_mean"] or m["moving_variance"]) for m in moved]


@pytest.mark.parametrize(
    ("batch_norm", "depth", "moved"),
    [
        # (scale and offset, statistics) of the stem's and the top's BatchNorm.
        ("inference", 1, [(False, False), (False, False)]),
        ("inference", 2, [(False, False), (True, False)]),
        ("inference", "all", [(True, False), (True, False)]),
        ("freeze", "all", [(False, False), (False, False)]),
        ("train", 2, [(False, False), (True, True)]),
        ("train", "all", [(True, True), (True, True)]),
    ],
)
def test_the_batch_norm_policy_holds_inside_fit(batch_norm, depth, moved):
    assert trained(batch_norm, depth) == moved


def test_dropout_is_active_only_where_a_group_trains():
    backbone = PretrainedBackbone(normalized(dropout=0.5), groups="blocks")
    x = np.ones((4, 6), "float32")
    still = backbone(x, training=False).numpy()
    assert not np.array_equal(backbone(x, training=True).numpy(), still)
    for group in backbone.layer_groups:
        for variable in group.variables:
            variable.trainable = False
    np.testing.assert_array_equal(backbone(x, training=True).numpy(), still)


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
