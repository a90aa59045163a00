"""Folded functions return what they returned, whatever becomes of the variables."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_transfer import _keras_internals
from keras_transfer.features import _folding

X = np.random.default_rng(0).normal(size=(5, 6)).astype("float32")
IDS = np.arange(15).reshape(5, 3) % 7


def normalized():
    layers = [keras.layers.Dense(4, "relu"), keras.layers.BatchNormalization()]
    model = keras.Sequential([keras.Input((6,)), *layers])
    model.layers[-1].moving_mean.assign(np.linspace(-1, 1, 4))
    return model, {"in": X}


def lookup():
    embedding = keras.layers.Embedding(7, 3)
    return keras.Sequential([keras.Input((3,), dtype="int32"), embedding]), {"in": IDS}


def loop():
    layers = [keras.layers.Embedding(7, 3, mask_zero=True), keras.layers.LSTM(4, unroll=False)]
    return keras.Sequential([keras.Input((3,), dtype="int32"), *layers]), {"in": IDS}


MODELS = {"normalized": normalized, "lookup": lookup, "loop": loop}


@pytest.mark.parametrize("name", MODELS)
def test_values_and_structure_stay_and_variables_do_not_matter_any_more(name):
    model, inputs = MODELS[name]()
    shift = tf.constant(0.5)

    def function(x):
        return {"out": model(x["in"], training=False) + shift, "in": x["in"]}

    inputs = {key: tf.convert_to_tensor(value) for key, value in inputs.items()}
    spec = {k: tf.TensorSpec((None, *v.shape[1:]), v.dtype) for k, v in inputs.items()}
    concrete = tf.function(function).get_concrete_function(spec)
    folded = _folding.fold_variables(concrete)
    before = concrete(inputs)
    found = folded(inputs)
    assert set(found) == {"out", "in"}
    np.testing.assert_array_equal(found["in"], inputs["in"])
    np.testing.assert_allclose(found["out"], before["out"], rtol=1e-5, atol=1e-6)
    one = folded({key: value[:1] for key, value in inputs.items()})
    np.testing.assert_allclose(one["out"], before["out"][:1], rtol=1e-5, atol=1e-6)
    for weight in model.weights:
        weight.assign(np.zeros(weight.shape))
    np.testing.assert_array_equal(folded(inputs)["out"], found["out"])
    assert not np.allclose(concrete(inputs)["out"], before["out"]), "control: they did matter"


def test_one_import_is_enough_but_for_loops(monkeypatch):
    used = []

    def convert(concrete):
        used.append(concrete)
        return convert_variables(concrete)

    convert_variables = _keras_internals.convert_variables
    monkeypatch.setattr(_keras_internals, "convert_variables", convert)
    for name, times in (("normalized", 0), ("lookup", 0), ("loop", 1)):
        model, inputs = MODELS[name]()
        spec = tf.TensorSpec((None, *inputs["in"].shape[1:]), inputs["in"].dtype)
        _folding.fold_variables(tf.function(model).get_concrete_function(spec))
        assert len(used) == times
