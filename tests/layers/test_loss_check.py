import functools

import keras
import pytest

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
    ids=str,
)
def test_logits_into_a_loss_for_probabilities_are_refused(loss, activation):
    with pytest.raises(ValueError, match=r"returns logits .*from_logits=True"):
        check_loss_matches_activation(loss, activation)
