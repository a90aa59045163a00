"""Flags of layers and variables, both ways: what a stage's set of variables comes down to."""

import keras
import numpy as np
import pytest

import keras_transfer as ktf
from keras_transfer import _trainability
from keras_transfer._layer_variables import variables_that_may_train
from tests.callbacks import toys


@pytest.mark.parametrize("first", ["freeze", "thaw", "by_layer", "by_variable"])
@pytest.mark.parametrize("wanted", [[0], [1], [0, 1], [2, 5], range(8)])
def test_just_the_given_variables_train_whatever_the_flags_were(first, wanted):
    model = toys.stock()
    body = model.layers[0]
    if first in ("freeze", "thaw"):
        model.trainable = first == "thaw"
    elif first == "by_layer":
        body.layers[1].trainable = False
    else:
        body.layers[0].kernel.trainable = False
    variables = variables_that_may_train([model])
    _trainability.set_flags(model, [variables[i] for i in wanted])
    assert [id(v) for v in model.trainable_variables] == [id(variables[i]) for i in wanted]
    assert not _trainability.set_flags(model, [variables[i] for i in wanted]), "nothing changed"


def test_a_layer_inside_two_others_keeps_the_flag_that_its_own_weights_need():
    shared = keras.layers.Dense(6, name="shared")
    low = keras.Sequential([keras.Input((6,)), keras.layers.Dense(6, name="a"), shared], name="low")
    high = keras.Sequential(
        [keras.Input((6,)), shared, keras.layers.Dense(6, name="b")], name="high"
    )
    model = keras.Sequential([keras.Input((6,)), low, high])
    wanted = [*shared.weights, high.layers[-1].kernel]
    _trainability.set_flags(model, wanted)
    assert {id(v) for v in model.trainable_variables} == {id(v) for v in wanted}
    assert not low.layers[0].trainable
    assert shared.trainable


def without_affine():
    """Its BatchNorms have statistics alone: no variable of theirs can be frozen."""

    def norm(name):
        return keras.layers.BatchNormalization(center=False, scale=False, name=name)

    layers = [
        keras.Input((6,)),
        keras.layers.Dense(8, name="stem"),
        norm("low"),
        keras.layers.Dense(8, name="top"),
        norm("high"),
    ]
    return keras.Sequential(layers, name="body")


@pytest.mark.usually("freeze-moved0")
@pytest.mark.parametrize(
    ("batch_norm", "moved"),
    [
        ("freeze", [[False, False], [False, False], [False, False]]),
        ("train", [[False, False], [False, True], [True, True]]),
    ],
)
def test_statistics_of_a_batch_norm_without_weights_follow_its_group(batch_norm, moved):
    class Statistics(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            self.before = self.read()

        def on_epoch_end(self, epoch, logs=None):
            rows = zip(self.before, self.read(), strict=True)
            seen.append([not np.array_equal(old, new) for old, new in rows])

        def read(self):
            return [body.get_layer(name).moving_mean.numpy() for name in ("low", "high")]

    body, seen = without_affine(), []
    model = toys.compiled(keras.Sequential([body, keras.layers.Dense(3, "softmax", name="new")]))
    x, y = toys.data()
    plan = ktf.UnfreezingPlan([ktf.Stage(f"top {n}", depth=n, epochs=1) for n in (1, 2, 3)])
    callback = ktf.callbacks.GradualUnfreezing(plan, "blocks", batch_norm=batch_norm, verbose=0)
    model.fit(x + 3.0, y, epochs=3, verbose=0, callbacks=[callback, Statistics()])
    assert seen == moved


class PlainNorm(keras.layers.LayerNormalization):
    """A subclass whose name says nothing."""


class ForeignNormalization(keras.layers.Layer):
    """A norm of another package: it derives from no normalization of Keras's."""

    def build(self, shape):
        self.weight = self.add_weight(shape=(shape[-1],), name="weight")

    def call(self, x):
        return x * self.weight


@pytest.mark.parametrize("norm", [PlainNorm, ForeignNormalization])
def test_norms_are_known_by_their_class_and_those_of_other_packages_by_its_name(norm):
    layers = [keras.layers.Dense(4, name="stem"), norm(name="n"), keras.layers.Dense(4, name="top")]
    body = keras.Sequential([keras.Input((4,)), *layers])
    model = ktf.TransferModel(body, keras.layers.Dense(2, name="classes"), groups="blocks")
    stage = ktf.Stage("norms", train="norm", epochs=1)
    found = _trainability.variables_of_stage(stage, model.layer_groups, [])
    head = model.layer_groups[-1].variables
    assert [id(v) for v in found] == [id(v) for v in [*layers[1].trainable_variables, *head]]
