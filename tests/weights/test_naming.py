import keras
import numpy as np
import pytest

from keras_transfer import _keras_internals
from keras_transfer.weights import named_weights
from tests.weights import models


def test_keras_still_keeps_children_and_numbers_weights_as_its_files_do():
    # Canary for `_keras_internals.child_layers` and `saved_variables`.
    model = models.classifier(3)
    names = [layer.name for layer in _keras_internals.child_layers(model)]
    assert "backbone" in names
    assert "head" in names
    norm = model.get_layer("backbone").get_layer("stem_norm")
    numbered = {}
    norm.save_own_variables(numbered)
    for index, variable in enumerate(_keras_internals.saved_variables(norm)):
        np.testing.assert_array_equal(numbered[str(index)].numpy(), variable.numpy())


def test_every_weight_of_a_nested_model_is_named_once_in_the_order_it_runs():
    model = models.classifier(3)
    named = named_weights(model)
    assert [weight.path for weight in named][:3] == [
        "backbone/stem/kernel",
        "backbone/stem/bias",
        "backbone/stem_norm/gamma",
    ]
    assert named[-1].path == "head/bias"
    assert {id(w.variable) for w in named} == {id(v) for v in model.weights}
    assert sum(weight.parameters for weight in named) == model.count_params()


def test_a_layer_used_twice_is_named_once():
    inputs = keras.Input((4,))
    shared = keras.layers.Dense(4, name="shared")
    model = keras.Model(inputs, shared(shared(inputs)))
    assert [weight.path for weight in named_weights(model)] == ["shared/kernel", "shared/bias"]


def test_dropout_seeds_metrics_and_slots_are_no_weights():
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dropout(0.5), keras.layers.Dense(2, name="head")]
    )
    model.compile("adam", "mse", metrics=["mae"])
    model.fit(np.ones((4, 4)), np.ones((4, 2)), verbose=0)
    assert [weight.path for weight in named_weights(model)] == ["head/kernel", "head/bias"]


def test_other_things_are_refused():
    with pytest.raises(TypeError, match=r"`model` must be a Keras model or layer. Received: 'x'"):
        named_weights("x")
