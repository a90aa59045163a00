"""Fingerprints of graphs with loops, in which variables are read in the loop's body."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_transfer as ktf
from keras_transfer.features._fingerprint import prefix_fingerprint
from keras_transfer.features._prefix import Prefix, deepest_point


def fingerprint(activation="tanh", change=None, unroll=False):
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(0)
    lstm = keras.layers.LSTM(3, activation=activation, unroll=unroll)
    body = keras.Sequential([keras.Input((4, 2)), lstm])
    model = ktf.TransferModel(body, keras.layers.Dense(2))
    if change is not None:
        weight = lstm.weights[change]
        weight.assign(np.nextafter(weight.numpy(), np.float32(9)))
    point = deepest_point(model, [])
    return prefix_fingerprint(Prefix(model, [point]), point, tf.TensorSpec((None, 4, 2)))


def test_the_same_loop_built_again_has_the_same_fingerprint():
    assert fingerprint() == fingerprint()


def test_what_a_loop_does_is_part_of_the_fingerprint():
    assert fingerprint() != fingerprint("relu")
    assert fingerprint() != fingerprint(unroll=True)


@pytest.mark.parametrize("change", [0, 1, 2])
def test_each_weight_that_a_loop_reads_is_part_of_the_fingerprint(change):
    assert fingerprint() != fingerprint(change=change)
