"""What of a head runs before the features that are kept."""

import keras
import numpy as np
import pytest

import keras_transfer as ktf
from keras_transfer.layers._head_split import split_head

L = keras.layers
FEATURES = np.random.default_rng(0).normal(size=(4, 3, 2)).astype("float32")


class Doubles(L.Layer):
    """Does something else in training, without a random number."""

    def call(self, x, training=None):
        return 2.0 * x if training else x


class Holds(L.Layer):
    """Has no `training` argument, and a layer inside that has."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def call(self, x):
        return self.layer(x)


def sequential(*layers):
    return keras.Sequential([keras.Input((3, 2)), *layers], name="head")


def dense():
    return L.Dense(2)


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: sequential(L.Flatten(), dense()), (4, 6)),
        (lambda: sequential(L.GlobalMaxPooling1D(), L.Dropout(0.5), dense()), (4, 2)),
        (lambda: sequential(L.Flatten(), L.Rescaling(2.0), L.Dropout(0.5), dense()), (4, 6)),
        (lambda: sequential(sequential(L.Flatten()), dense()), (4, 6)),
        (lambda: sequential(L.Flatten(), Doubles(), dense()), (4, 6)),
        (lambda: sequential(L.Flatten(), Holds(Doubles()), dense()), (4, 6)),
        (lambda: sequential(L.Flatten(), Holds(L.Dropout(0.5)), dense()), (4, 6)),
        (lambda: sequential(L.Flatten(), sequential_of_dropout(), dense()), (4, 6)),
        (lambda: sequential(L.Flatten(), L.ActivityRegularization(0.1), dense()), (4, 6)),
        (lambda: built(ktf.layers.ClassificationHead(3)), (4, 2)),
        (lambda: built(ktf.layers.ClassificationHead(3, pooling="flatten")), (4, 6)),
    ],
)
def test_a_head_is_split_before_what_training_may_change(make, shape):
    head = make()
    split = split_head(head)
    pooled = split.pool(keras.ops.convert_to_tensor(FEATURES))
    assert tuple(pooled.shape) == shape
    np.testing.assert_allclose(split.classify(pooled, training=False), head(FEATURES), rtol=1e-5)


def sequential_of_dropout():
    return keras.Sequential([keras.Input((6,)), L.Dropout(0.5)])


def built(head):
    head(FEATURES)
    return head


@pytest.mark.parametrize(
    "make",
    [
        lambda: sequential(dense()),
        lambda: sequential(L.Dropout(0.5), L.Flatten(), dense()),
        lambda: sequential(Doubles(), L.Flatten(), dense()),
        lambda: sequential(L.Flatten()),
        lambda: built(ktf.layers.ClassificationHead(3, pooling=None)),
        dense,
    ],
)
def test_a_head_that_begins_with_it_is_not_split(make):
    assert split_head(make()) is None


def test_what_a_layer_does_in_training_it_does_on_kept_features_too():
    head = sequential(L.Flatten(), Doubles(), dense())
    split = split_head(head)
    pooled = split.pool(keras.ops.convert_to_tensor(FEATURES))
    np.testing.assert_allclose(
        split.classify(pooled, training=True), head(FEATURES, training=True), rtol=1e-5
    )
