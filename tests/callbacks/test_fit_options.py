"""What else `fit` and a model may have: the stages move what they train and nothing else."""

import copy

import keras
import numpy as np
import pytest

import keras_transfer as ktf
from tests.callbacks import toys

X, Y = toys.data()
FIT_OPTIONS = {
    "class_weight": lambda: {"class_weight": {0: 1.0, 1: 5.0, 2: 0.5}},
    "sample_weight": lambda: {"sample_weight": np.linspace(0.1, 2.0, len(X))},
    "validation_split": lambda: {"validation_split": 0.25},
    "steps_per_epoch": lambda: {"steps_per_epoch": 2, "batch_size": 4},
    "batch_size": lambda: {"batch_size": 5},
}


@pytest.mark.usually("class_weight-transfer", "validation_split-transfer")
@pytest.mark.parametrize("make", [toys.functional, toys.transfer])
@pytest.mark.parametrize("name", FIT_OPTIONS)
def test_options_of_fit(make, name):
    model = toys.compiled(make())
    assert toys.fit(model, **FIT_OPTIONS[name]()) == toys.EXPECTED


class AddsLoss(keras.layers.Layer):
    def call(self, inputs):
        self.add_loss(0.1 * keras.ops.mean(keras.ops.square(inputs)))
        return inputs


def body_with(*more, **options):
    dense = {
        name: keras.layers.Dense(8, "tanh", name=name, **options) for name in ("stem", "mid", "top")
    }
    return keras.Sequential(
        [keras.Input((6,)), dense["stem"], dense["mid"], *more, dense["top"]], name="body"
    )


def head():
    return keras.layers.Dense(3, "softmax", name="new")


def wrapped(body):
    return ktf.TransferModel(body, head(), groups="blocks")


def stock(body):
    return keras.Sequential([body, head()])


def penalty():
    return keras.regularizers.L2(0.1)


MODELS = {
    "add_loss": lambda make: make(body_with(AddsLoss())),
    "regularizers": lambda make: make(body_with(kernel_regularizer=penalty())),
    "dropout, whose seed is state": lambda make: make(body_with(keras.layers.Dropout(0.3))),
}


@pytest.mark.usually("regularizers-stock", "dropout, whose seed is state-wrapped")
@pytest.mark.parametrize("make", [stock, wrapped])
@pytest.mark.parametrize("name", MODELS)
def test_models(make, name):
    model = toys.compiled(MODELS[name](make))
    assert toys.fit(model) == toys.EXPECTED


@pytest.mark.usually("wrapped")
@pytest.mark.parametrize("make", [stock, wrapped])
def test_a_penalty_on_a_frozen_layer_adds_to_no_gradient(make):
    """Keras counts penalties of what trains; the head moves as it does without any."""
    moved = []
    for options in ({}, {"kernel_regularizer": penalty()}):
        keras.utils.set_random_seed(0)
        keras.utils.clear_session(free_memory=False)
        model = toys.compiled(make(body_with(**options)))
        plan = ktf.UnfreezingPlan([ktf.Stage("probe", depth=1, epochs=1)])
        toys.fit(model, plan)
        moved.append(model.get_weights()[-2])
    np.testing.assert_allclose(*moved, atol=1e-6)


def two_headed():
    inputs = keras.Input((6,), name="features")
    x = toys.backbone()(inputs)
    return keras.Model(
        inputs,
        {
            "kind": keras.layers.Dense(3, "softmax", name="kind")(x),
            "size": keras.layers.Dense(1, name="size")(x),
        },
    )


def test_several_outputs_and_losses():
    model = two_headed()
    model.compile(
        "adam",
        loss={"kind": "sparse_categorical_crossentropy", "size": "mse"},
        loss_weights={"kind": 1.0, "size": 0.5},
        metrics={"kind": ["accuracy"]},
    )
    seen = toys.Snapshots()
    targets = {"kind": Y, "size": X[:, :1]}
    model.fit(X, targets, epochs=3, verbose=0, callbacks=[toys.unfreezing(model), seen])
    assert seen.moves == [
        [False] * 6 + [True] * 4,
        [False] * 4 + [True] * 6,
        [True] * 10,
    ]


def test_a_layer_that_two_models_share_trains_with_its_group():
    shared = keras.layers.Dense(6, "tanh", name="shared")
    inputs = keras.Input((6,))
    x = shared(shared(inputs))
    body = keras.Model(inputs, keras.layers.Dense(8, "tanh", name="top")(x), name="body")
    model = toys.compiled(stock(body))
    seen = toys.Snapshots()
    plan = ktf.UnfreezingPlan(
        [ktf.Stage("top", depth=2, epochs=1), ktf.Stage("all", depth="all", epochs=1)]
    )
    model.fit(X, Y, epochs=2, verbose=0, callbacks=[toys.unfreezing(model, plan), seen])
    assert seen.moves == [[False] * 2 + [True] * 4, [True] * 6]


# --- Quantized layers -------------------------------------------------------------------------


@pytest.mark.usually("wrapped")
@pytest.mark.parametrize("make", [stock, wrapped])
def test_a_quantized_body_stays_and_the_rest_trains(make):
    """Kernels of int8 cannot train; biases can."""
    body = body_with()
    for name in ("stem", "mid", "top"):
        body.get_layer(name).quantize("int8")
    model = toys.compiled(make(body))
    before = {w.path: np.array(w) for w in model.weights}
    toys.fit(model)
    moved = {w.path for w in model.weights if not np.array_equal(before[w.path], np.array(w))}
    integers = {w.path for w in model.weights if "int" in str(w.dtype)}
    assert integers
    assert not moved & integers
    assert sum("bias" in path for path in moved) == 4


# --- Copies -----------------------------------------------------------------------------------


def test_a_cloned_model_trains_as_the_first_did():
    model = toys.functional()
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    assert toys.fit(toys.compiled(model)) == toys.EXPECTED
    assert toys.fit(toys.compiled(clone)) == toys.EXPECTED
    for one, other in zip(model.get_weights(), clone.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.exhaustive
@pytest.mark.filterwarnings("ignore:The state of Snapshots is not kept")
def test_a_copied_resumable_callback_keeps_its_own_files_and_leaves_the_model_alone(tmp_path):
    first = ktf.callbacks.ResumableTraining(tmp_path / "first", save_freq="epoch", keep=3)
    model = toys.compiled(toys.transfer())
    toys.fit(model, callbacks=[first])
    second = copy.deepcopy(first)
    assert (second.directory, second.save_freq, second.keep) == (first.directory, "epoch", 3)
    assert second.model is None
    second.directory = tmp_path / "second"
    other = toys.compiled(toys.transfer())
    second = ktf.callbacks.ResumableTraining(tmp_path / "second")
    assert toys.fit(other, callbacks=[copy.deepcopy(second)]) == toys.EXPECTED
    assert len(list((tmp_path / "second").iterdir())) == 2


# --- Export -----------------------------------------------------------------------------------


@pytest.mark.usually("transfer")
@pytest.mark.parametrize("make", [toys.functional, toys.transfer])
def test_an_exported_model_predicts_the_same(make, tmp_path):
    tf = pytest.importorskip("tensorflow")
    model = toys.compiled(make())
    toys.fit(model)
    model.export(tmp_path / "exported", verbose=False)
    served = tf.saved_model.load(str(tmp_path / "exported"))
    np.testing.assert_allclose(served.serve(X), model.predict(X, verbose=0), atol=1e-6)
