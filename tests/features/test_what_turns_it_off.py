"""Models whose features must not be cached although the layers before the head are frozen."""

import keras
import numpy as np
import pytest

import keras_transfer as ktf

X = np.random.default_rng(0).normal(size=(24, 6)).astype("float32")
Y = np.arange(24) % 3


def transfer_model(cls=ktf.TransferModel, **dense):
    keras.utils.set_random_seed(0)
    body = keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(8, "tanh", name="stem", **dense),
            keras.layers.Dense(8, "tanh", name="top"),
        ]
    )
    backbone = ktf.layers.PretrainedBackbone(body, groups="blocks")
    model = cls(backbone, ktf.layers.ClassificationHead(3))
    model.compile("adam", "sparse_categorical_crossentropy")
    model.freeze()
    return model


def fit(model, cache_features="auto"):
    return model.fit(X, Y, epochs=3, verbose=2, cache_features=cache_features).history["loss"]


def test_without_anything_in_the_way_it_is_on(capsys):
    fit(transfer_model())
    assert "Feature cache on for training (0.8 kB)." in capsys.readouterr().out


def test_a_frozen_layer_that_adds_to_the_loss_turns_it_off(capsys):
    losses = fit(transfer_model(activity_regularizer=keras.regularizers.L2(1.0)))
    assert "a frozen layer adds to the loss when it runs" in capsys.readouterr().out
    without = fit(transfer_model(activity_regularizer=keras.regularizers.L2(1.0)), False)
    assert losses == without
    assert losses[0] > fit(transfer_model())[0] + 0.1  # the regularizer is felt


def test_a_train_step_of_the_users_own_gets_raw_inputs(capsys):
    seen = []

    class Augmenting(ktf.TransferModel):
        def train_step(self, data):
            seen.append(data[0].shape[1:])
            return super().train_step(data)

    fit(transfer_model(Augmenting))
    assert seen[0] == (6,)
    assert "Augmenting has a `train_step` of its own" in capsys.readouterr().out


def test_a_train_step_of_the_users_own_may_be_trusted_with_features():
    seen = []

    class Counting(ktf.TransferModel):
        def train_step(self, data):
            seen.append(list(data[0]))
            return super().train_step(data)

    losses = fit(transfer_model(Counting), True)
    assert seen[0] == ["keras_transfer/features@2"]
    np.testing.assert_allclose(losses, fit(transfer_model(), False), rtol=1e-5)


def test_a_call_of_the_users_own_is_never_given_features():
    class Doubling(ktf.TransferModel):
        def call(self, inputs, training=None, mask=None):
            return super().call(2 * inputs, training=training, mask=mask)

    fit(transfer_model(Doubling))
    with pytest.raises(ValueError, match="Doubling has a `call` of its own"):
        fit(transfer_model(Doubling), True)


def test_float64_arrays_are_not_copied_and_train_as_float32_ones():
    def weights(x):
        model = transfer_model()
        model.fit(x, Y, epochs=2, verbose=0, cache_features=False)
        return model.get_weights()

    for one, other in zip(weights(X), weights(X.astype("float64")), strict=True):
        np.testing.assert_array_equal(one, other)
