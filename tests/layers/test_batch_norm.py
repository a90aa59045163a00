"""BatchNorm and dropout inside `fit`, before and after unfreezing, nested too."""

import keras
import numpy as np
import pytest

import keras_transfer as ktf
from keras_transfer.layers import PretrainedBackbone

PLAN = ktf.UnfreezingPlan(
    [
        ktf.Stage("probe", depth=1, epochs=1),
        ktf.Stage("top", depth=2, epochs=1),
        ktf.Stage("all", depth="all", epochs=1),
    ]
)


def normalized(name):
    return [
        keras.layers.Dense(8, "tanh", name=name),
        keras.layers.BatchNormalization(name=f"{name}_bn"),
    ]


def flat():
    return keras.Sequential([keras.Input((6,)), *normalized("stem"), *normalized("top")])


def nested():
    """The upper group lies two models deep."""
    inner_input = keras.Input((8,))
    x = inner_input
    for layer in normalized("top"):
        x = layer(x)
    inner = keras.Model(inner_input, x, name="inner")
    outer = keras.Sequential([keras.Input((8,)), inner], name="outer")
    inputs = keras.Input((6,))
    x = inputs
    for layer in normalized("stem"):
        x = layer(x)
    return keras.Model(inputs, outer(x))


@keras.saving.register_keras_serializable(package="tests")
class Subclassed(keras.Model):
    """Whose graph is not known."""

    def __init__(self, width=6, **kwargs):
        super().__init__(**kwargs)
        self.stem, self.stem_bn = normalized("stem")
        self.top, self.top_bn = normalized("top")
        self(np.zeros((1, width), "float32"))

    def call(self, x, training=None):
        x = self.stem_bn(self.stem(x), training=training)
        return self.top_bn(self.top(x), training=training)


class Norms(keras.callbacks.Callback):
    """For each epoch and BatchNorm: whether (scale and offset, statistics) moved."""

    def __init__(self, layers):
        super().__init__()
        self.layers, self.moves = layers, []

    def read(self):
        return [{v.name: v.numpy() for v in layer.weights} for layer in self.layers]

    def on_epoch_begin(self, epoch, logs=None):
        self.before = self.read()

    def on_epoch_end(self, epoch, logs=None):
        moved = [
            {name: not np.array_equal(old[name], new[name]) for name in old}
            for old, new in zip(self.before, self.read(), strict=True)
        ]
        self.moves.append(
            [(m["gamma"] and m["beta"], m["moving_mean"] or m["moving_variance"]) for m in moved]
        )


def batch_norms(model):
    """The stem's and the top's."""
    found = [v.path.split("/")[-2] for v in model.weights if "moving_mean" in v.path]
    assert [name.removesuffix("_bn") for name in found] == ["stem", "top"]
    inside = [model]
    for layer in inside:
        inside += getattr(layer, "layers", [])
    by_name = {layer.name: layer for layer in inside}
    return [by_name["stem_bn"], by_name["top_bn"]]


def fit(model, callback, norms):
    model.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy")
    keras.utils.set_random_seed(0)
    x = np.random.normal(3, 2, size=(16, 6)).astype("float32")
    seen = Norms(norms)
    model.fit(x, np.arange(16) % 2, epochs=3, verbose=0, callbacks=[callback, seen])
    return seen.moves


def head():
    return keras.layers.Dense(2, "softmax", name="new")


STILL, AFFINE, BOTH = (False, False), (True, False), (True, True)
# For the stages probe, top, all: what moves in the stem's BatchNorm and in the top's.
WANTED = {
    "inference": [[STILL, STILL], [STILL, AFFINE], [AFFINE, AFFINE]],
    "freeze": [[STILL, STILL], [STILL, STILL], [STILL, STILL]],
    "train": [[STILL, STILL], [STILL, BOTH], [BOTH, BOTH]],
}


@pytest.mark.usually("train-nested")
@pytest.mark.parametrize("make", [flat, nested])
@pytest.mark.parametrize("batch_norm", WANTED)
def test_the_policy_holds_in_every_stage_of_one_fit(make, batch_norm):
    backbone = PretrainedBackbone(make(), groups="blocks", batch_norm=batch_norm)
    assert len(backbone.layer_groups) == 2
    model = ktf.TransferModel(backbone, head())
    callback = ktf.callbacks.GradualUnfreezing(PLAN, verbose=0)
    assert fit(model, callback, batch_norms(backbone.model)) == WANTED[batch_norm]


@pytest.mark.usually("freeze")
@pytest.mark.parametrize("batch_norm", ["freeze", "train"])
def test_the_policy_holds_for_a_subclassed_model(batch_norm):
    # It runs as a whole, in training while any group trains; a frozen BatchNorm is still by
    # itself.
    backbone = PretrainedBackbone(Subclassed(), groups="blocks", batch_norm=batch_norm)
    model = ktf.TransferModel(backbone, head())
    callback = ktf.callbacks.GradualUnfreezing(PLAN, verbose=0)
    assert fit(model, callback, batch_norms(backbone.model)) == WANTED[batch_norm]


def holding_a_subclassed_model():
    inputs = keras.Input((6,))
    return keras.Model(inputs, Subclassed(8)(keras.layers.Dense(8, name="first")(inputs)))


@pytest.mark.parametrize("make", [Subclassed, holding_a_subclassed_model])
def test_inference_is_refused_where_batch_norms_cannot_be_reached(make):
    message = r"cannot reach 2 BatchNormalization layers .* \(stem_bn, top_bn\)\. Use .*'freeze'"
    with pytest.raises(ValueError, match=message):
        PretrainedBackbone(make(), batch_norm="inference")
    for batch_norm in ("freeze", "train"):
        PretrainedBackbone(make(), batch_norm=batch_norm)


class WithoutAffine(keras.Model):
    """Subclassed, with statistics that no variable's flag can hold still."""

    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(8, name="dense")
        self.norm = keras.layers.BatchNormalization(center=False, scale=False, name="norm")
        self(np.zeros((1, 6), "float32"))

    def call(self, x, training=None):
        return self.norm(self.dense(x), training=training)


@pytest.mark.parametrize(("batch_norm", "moves"), [("freeze", False), ("train", True)])
def test_statistics_without_scale_and_offset_follow_the_policy_after_unfreeze(batch_norm, moves):
    backbone = PretrainedBackbone(WithoutAffine(), batch_norm=batch_norm)
    model = ktf.TransferModel(backbone, head())
    model(np.zeros((1, 6), "float32"))
    model.freeze()
    model.unfreeze()
    model.compile("sgd", "sparse_categorical_crossentropy")
    x = np.random.normal(3, 2, size=(16, 6)).astype("float32")
    model.fit(x, np.arange(16) % 2, verbose=0)
    assert backbone.model.norm.moving_mean.numpy().any() == moves


# --- Stock models ---------------------------------------------------------------------------


def stock(make):
    inputs = keras.Input((6,))
    return keras.Model(inputs, head()(make()(inputs, training=False)))


@pytest.mark.usually("freeze-nested")
@pytest.mark.parametrize("make", [flat, nested])
@pytest.mark.parametrize("batch_norm", ["freeze", "train"])
def test_the_policy_of_the_callback_holds_on_a_stock_model(make, batch_norm):
    model = stock(make)
    callback = ktf.callbacks.GradualUnfreezing(
        PLAN, groups="blocks", batch_norm=batch_norm, verbose=0
    )
    assert fit(model, callback, batch_norms(model.layers[1])) == WANTED[batch_norm]


def test_control_the_guides_recipe_moves_statistics_once_unfrozen():
    # `base(x, training=False)` in a functional model is overruled by `fit`. When this fails,
    # Keras keeps to it, and "inference" could be had on stock models.
    model = stock(flat)
    assert fit(model, keras.callbacks.Callback(), batch_norms(model.layers[1]))[0] == [BOTH, BOTH]


def test_inference_is_refused_on_a_stock_model():
    with pytest.raises(ValueError, match="batch_norm='inference' needs a `TransferModel`"):
        ktf.callbacks.GradualUnfreezing(PLAN, batch_norm="inference")


# --- Dropout ----------------------------------------------------------------------------------


def with_dropout():
    """Dropout in a nested model in each of two groups; `low` and `high`."""

    def piece(name):
        layers = [keras.Input((6,)), keras.layers.Dense(6, name=name), keras.layers.Dropout(0.5)]
        return keras.Sequential(layers, name=f"{name}_piece")

    return keras.Sequential([keras.Input((6,)), piece("low"), piece("high")])


@pytest.mark.parametrize(("frozen", "still"), [(0, False), (1, False), (2, True)])
def test_dropout_is_active_only_in_groups_that_train(frozen, still):
    backbone = PretrainedBackbone(with_dropout(), groups="blocks")
    model = ktf.TransferModel(backbone, keras.layers.Dense(2, name="new"))
    assert backbone.layer_groups.names == ["low", "high"]
    model.freeze_to(frozen)
    x = np.ones((64, 6), "float32")
    outputs = [backbone(x, training=True).numpy() for _ in range(2)]
    assert np.array_equal(*outputs) == still
    kept = (outputs[0] != 0).mean()
    assert kept == 1.0 if still else 0.3 < kept < 0.7
    # All rows are equal: without the low group's dropout, the high one's leaves 6 values.
    values = {round(float(v), 4) for v in outputs[0].ravel() if v != 0}
    assert (len(values) <= 6) == (frozen >= 1)


def test_flags_given_to_the_constructor_reach_the_layers():
    frozen = PretrainedBackbone(flat(), batch_norm="freeze")
    assert [layer.trainable for layer in frozen.batch_norms] == [False, False]
    assert len(frozen.trainable_variables) == 4, "kernels and biases"
    still = PretrainedBackbone(flat(), trainable=False)
    assert not any(layer.trainable for layer in still.model.layers)
    assert all(layer.trainable for layer in PretrainedBackbone(flat()).model.layers)


def test_frozen_batch_norms_stay_without_a_plan_too():
    backbone = PretrainedBackbone(flat(), batch_norm="freeze")
    model = ktf.TransferModel(backbone, keras.layers.Dense(2))
    model.compile("adam", "mse")
    before = [layer.get_weights() for layer in backbone.batch_norms]
    kernel = np.array(backbone.model.layers[0].kernel)
    rng = np.random.default_rng(0)
    model.fit(rng.normal(size=(8, 6)), rng.normal(size=(8, 2)), verbose=0)
    for layer, values in zip(backbone.batch_norms, before, strict=True):
        for one, other in zip(values, layer.get_weights(), strict=True):
            np.testing.assert_array_equal(one, other)
    assert not np.array_equal(kernel, backbone.model.layers[0].kernel)
