"""What a resumed run draws from generators that the process shares is what it would have drawn."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_transfer as ktf
from keras_transfer import _random_state
from tests.reliability import runs

X, Y = runs.data()


@keras.saving.register_keras_serializable("tests")
class Noise(keras.layers.Layer):
    """Noise without a generator of its own."""

    def call(self, x, training=False):
        if not training:
            return x
        by_tensorflow = tf.random.get_global_generator().normal(tf.shape(x))
        return x + keras.random.normal(keras.ops.shape(x)) + by_tensorflow


class Stop(keras.callbacks.Callback):
    """Ends the process of the second epoch, as far as the files can tell."""

    def on_train_batch_end(self, batch, logs=None):
        if self.model.optimizer.iterations == 4:
            raise InterruptedError

    def get_state(self):
        return {}

    def set_state(self, state):
        pass


def fit(directory, callbacks=()):
    keras.utils.clear_session(free_memory=False)
    tf.random.set_global_generator(tf.random.Generator.from_seed(1))
    keras.utils.set_random_seed(0)
    body = keras.Sequential([keras.Input((4,)), keras.layers.Dense(5), Noise()], name="body")
    model = ktf.TransferModel(body, ktf.layers.RegressionHead(2, pooling=None))
    model.compile("adam", "mse")
    resumable = ktf.callbacks.ResumableTraining(directory)
    model.fit(X, Y, batch_size=4, epochs=3, verbose=0, callbacks=[resumable, *callbacks])
    return model.get_weights()


def test_a_resumed_run_draws_the_numbers_it_would_have_drawn(tmp_path):
    whole = fit(tmp_path / "whole")
    with pytest.raises(InterruptedError):
        fit(tmp_path / "parts", [Stop()])
    for one, other in zip(whole, fit(tmp_path / "parts"), strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_shared_generators_are_put_back_also_where_they_do_not_exist_yet():
    def draws():
        return [
            float(keras.random.uniform(())),
            float(tf.random.get_global_generator().uniform(())),
            float(np.random.uniform()),
        ]

    keras.utils.set_random_seed(3)
    draws()
    state = _random_state.get_state()
    expected = draws()
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(4)
    assert draws() != expected
    keras.utils.clear_session(free_memory=False)
    _random_state.set_state(state)
    assert draws() == expected
