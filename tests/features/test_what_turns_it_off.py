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


def callback(hook, change):
    def run(epoch, logs=None):
        if epoch == 1:
            change()

    return keras.callbacks.LambdaCallback(**{hook: run})


def test_weights_that_a_callback_changes_are_seen_by_the_next_epoch():
    def losses(cache_features):
        model = transfer_model()
        kernel = model.backbone.model.layers[0].kernel
        halve = callback("on_epoch_end", lambda: kernel.assign(0.5 * kernel))
        return model.fit(
            X, Y, epochs=4, verbose=0, callbacks=[halve], cache_features=cache_features
        ).history["loss"]

    np.testing.assert_allclose(losses("auto"), losses(False), rtol=1e-5)
    assert abs(losses(False)[3] - fit_losses_without_change()[3]) > 1e-3


def fit_losses_without_change():
    return transfer_model().fit(X, Y, epochs=4, verbose=0).history["loss"]


def test_weights_that_a_callback_changes_as_an_epoch_begins_are_an_error():
    model = transfer_model()
    kernel = model.backbone.model.layers[0].kernel
    halve = callback("on_epoch_begin", lambda: kernel.assign(0.5 * kernel))
    with pytest.raises(RuntimeError, match="has changed frozen weights at the beginning"):
        model.fit(X, Y, epochs=4, verbose=0, callbacks=[halve])


def test_a_pooling_of_the_users_own_trains():
    class Attention(ktf.layers.ClassificationHead):
        def build(self, shape):
            self.scores = keras.layers.Dense(1)
            self.scores.build((None, None, 8))
            super().build(shape)

        def pool(self, features, mask=None):
            weights = keras.ops.softmax(self.scores(features), axis=1)
            return keras.ops.sum(features * weights, axis=1)

    keras.utils.set_random_seed(0)
    body = keras.Sequential([keras.Input((5, 6)), keras.layers.Dense(8, name="stem")])
    model = ktf.TransferModel(body, Attention(num_classes=3))
    model.compile("adam", "sparse_categorical_crossentropy")
    model.freeze()
    before = model.head.scores.kernel.numpy()
    x = np.random.default_rng(0).normal(size=(24, 5, 6)).astype("float32")
    model.fit(x, Y, epochs=2, verbose=0, cache_features=True)
    assert not np.array_equal(before, model.head.scores.kernel.numpy())


def test_a_key_that_stands_for_other_rows_is_an_error():
    cache = ktf.features.FeatureCache(key="mine")
    model = transfer_model()
    model.fit(X[:18], Y[:18], epochs=2, verbose=0, cache_features=cache)
    with pytest.raises(ValueError, match="features of 18 examples under key='mine'"):
        model.fit(X, Y, epochs=2, verbose=0, cache_features=cache)


def test_a_directory_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    cache = ktf.features.FeatureCache(tmp_path / "file")
    with pytest.raises(OSError, match=r"Features cannot be written to .*file"):
        fit(transfer_model(), cache)


def test_validation_data_that_cannot_be_kept_is_an_error_where_the_user_insists():
    arguments = {"validation_data": (X, Y), "validation_steps": 1, "epochs": 2, "verbose": 0}
    with pytest.raises(ValueError, match=r"validation data .*have another order"):
        transfer_model().fit(X, Y, cache_features=True, **arguments)
    history = transfer_model().fit(X, Y, **arguments).history
    assert len(history["val_loss"]) == 2
