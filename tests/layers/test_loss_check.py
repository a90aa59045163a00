import functools
import re

import keras
import pytest

import keras_transfer as ktf
from keras_transfer.layers._loss_check import check_loss_matches_activation

LOGITS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
PROBABILITIES = keras.losses.SparseCategoricalCrossentropy()


@pytest.mark.parametrize(
    ("loss", "activation"),
    [
        ("sparse_categorical_crossentropy", "softmax"),
        ("CategoricalCrossentropy", keras.activations.softmax),
        ("binary_crossentropy", "sigmoid"),
        (PROBABILITIES, keras.layers.Softmax()),
        (LOGITS, None),
        (LOGITS, "linear"),
        (functools.partial(keras.losses.categorical_crossentropy, from_logits=True), None),
        ([PROBABILITIES, None], "softmax"),
        ({"head": {"inner": LOGITS}}, None),
    ],
)
def test_losses_that_fit_pass(loss, activation):
    check_loss_matches_activation(loss, activation)


@pytest.mark.parametrize(
    ("loss", "activation"),
    [
        ("mse", None),
        (keras.losses.MeanAbsoluteError(), "softplus"),
        (lambda y_true, y_pred: 0.0, None),
        ("no_such_loss", None),
        (LOGITS, "log_softmax"),
        (PROBABILITIES, lambda x: x),
        (None, "softmax"),
    ],
)
def test_what_cannot_be_told_passes(loss, activation):
    check_loss_matches_activation(loss, activation)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid", keras.layers.Activation("softmax")])
@pytest.mark.parametrize(
    "loss",
    [
        LOGITS,
        [LOGITS],
        {"head": LOGITS},
        keras.losses.BinaryFocalCrossentropy(from_logits=True),
        functools.partial(keras.losses.binary_crossentropy, from_logits=True),
    ],
    ids=["object", "list", "dict", "focal", "partial"],
)
def test_probabilities_into_a_loss_for_logits_are_refused(loss, activation):
    with pytest.raises(ValueError, match=r"returns probabilities .*Leave out from_logits=True"):
        check_loss_matches_activation(loss, activation)


@pytest.mark.parametrize("activation", [None, "linear", keras.activations.linear])
@pytest.mark.parametrize(
    "loss",
    [
        "sparse_categorical_crossentropy",
        "binary_crossentropy",
        "CategoricalFocalCrossentropy",
        PROBABILITIES,
        keras.losses.categorical_crossentropy,
        [None, PROBABILITIES],
    ],
    # Without addresses, which pytest-xdist would find to differ between its processes.
    ids=lambda value: re.sub(r" at 0x[0-9a-f]+", "", str(value)),
)
def test_logits_into_a_loss_for_probabilities_are_refused(loss, activation):
    with pytest.raises(ValueError, match=r"returns logits .*from_logits=True"):
        check_loss_matches_activation(loss, activation)


def functional_head(end):
    inputs = keras.Input((4,))
    return keras.Model(inputs, end(keras.layers.Dense(3, name="logits")(inputs)))


def transfer(head):
    backbone = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4, name="stem")])
    return ktf.TransferModel(backbone, head)


ENDS_IN_PROBABILITIES = {
    "our_head": lambda: keras.Sequential([ktf.layers.ClassificationHead(3)]),
    "dense": lambda: keras.Sequential([keras.layers.Dense(3, "softmax")]),
    "softmax_layer": lambda: keras.Sequential([keras.layers.Dense(3), keras.layers.Softmax()]),
    "activation": lambda: functional_head(keras.layers.Activation("softmax")),
    "nested": lambda: keras.Sequential([functional_head(keras.layers.Softmax())]),
}


@pytest.mark.parametrize("make", ENDS_IN_PROBABILITIES.values(), ids=ENDS_IN_PROBABILITIES)
def test_heads_made_of_layers_are_looked_through(make):
    with pytest.raises(ValueError, match=r"returns probabilities \(activation='softmax'\)"):
        transfer(make()).compile("adam", LOGITS)
    transfer(make()).compile("adam", PROBABILITIES)


def test_logits_of_a_nested_head_are_refused_and_an_operation_behind_them_is_seen():
    head = keras.Sequential([keras.layers.Dropout(0.1), keras.layers.Dense(3)])
    with pytest.raises(ValueError, match=r"returns logits"):
        transfer(head).compile("adam", PROBABILITIES)
    transfer(functional_head(keras.ops.softmax)).compile("adam", PROBABILITIES)
