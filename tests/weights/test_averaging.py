import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_transfer.weights import average_weights, greedy_soup, interpolate_weights
from tests.weights import models


@given(st.floats(0, 1), st.integers(0, 100))
def test_interpolation_is_the_line_and_its_ends_are_exact(alpha, seed):
    rng = np.random.default_rng(seed)
    start = [rng.normal(size=shape).astype("float32") for shape in ((2, 3), (3,))]
    end = [rng.normal(size=array.shape).astype("float32") for array in start]
    for mixed, a, b in zip(interpolate_weights(start, end, alpha), start, end, strict=True):
        assert mixed.dtype == np.float32
        np.testing.assert_allclose(mixed, (1 - alpha) * a + alpha * b, atol=1e-6)
    for mixed, a in zip(interpolate_weights(start, end, 0), start, strict=True):
        np.testing.assert_array_equal(mixed, a)
    for mixed, b in zip(interpolate_weights(start, end, 1), end, strict=True):
        np.testing.assert_array_equal(mixed, b)


def test_models_are_taken_as_they_are_and_not_changed():
    first = models.randomize(models.classifier(3))
    second = models.randomize(models.classifier(3), seed=1)
    before = models.values(first), models.values(second)
    mixed = interpolate_weights(first, second, 0.5)
    assert all(models.equal(first, before[0]))
    assert all(models.equal(second, before[1]))
    first.set_weights(mixed)
    np.testing.assert_allclose(first.get_weights()[0], (before[0][0] + before[1][0]) / 2, rtol=1e-6)


def test_alpha_outside_its_range_is_refused():
    with pytest.raises(ValueError, match=r"`alpha` must be .*at most 1. Received: alpha=1.5"):
        interpolate_weights([np.zeros(2)], [np.ones(2)], 1.5)


def test_other_architectures_are_named_with_both_sides():
    with pytest.raises(
        ValueError,
        match=r"weight 8 \(head/kernel\) of shape \(6, 3\) in `pretrained`, \(6, 2\) in `fine",
    ):
        interpolate_weights(models.classifier(3), models.classifier(2), 0.5)
    with pytest.raises(ValueError, match=r"1 weights in `members\[0\]`, 2 in `members\[1\]`"):
        average_weights([[np.zeros(1)], [np.zeros(1), np.zeros(1)]])
    with pytest.raises(ValueError, match="at least one model"):
        average_weights([])
    with pytest.raises(
        TypeError, match=r"`members\[0\]` must be a Keras model or a list of arrays"
    ):
        average_weights(["model.keras"])
    with pytest.raises(TypeError, match="`members` must be a list of models"):
        average_weights(models.backbone())


@given(st.integers(1, 5), st.integers(0, 100))
def test_a_uniform_soup_is_the_mean_whatever_the_order(count, seed):
    rng = np.random.default_rng(seed)
    members = [[rng.normal(size=(2, 2))] for _ in range(count)]
    mean = np.mean([member[0] for member in members], axis=0)
    np.testing.assert_allclose(average_weights(members)[0], mean, atol=1e-12)
    np.testing.assert_allclose(average_weights(members[::-1])[0], mean, atol=1e-12)


def test_the_mean_of_half_precision_weights_does_not_overflow():
    members = [[np.array([60000.0], dtype=np.float16)]] * 3
    assert average_weights(members)[0] == np.float16(60000)


def test_whole_number_weights_are_not_averaged():
    members = [[np.array([3], dtype=np.int64)], [np.array([8], dtype=np.int64)]]
    assert average_weights(members)[0].tolist() == [3]
    assert interpolate_weights(members[0], members[1], 0.5)[0].tolist() == [8]
    assert interpolate_weights(members[0], members[1], 0)[0].tolist() == [3]


@pytest.mark.parametrize("mode", ["max", "min"])
def test_a_greedy_soup_takes_what_does_not_hurt_best_first(mode):
    sign = 1 if mode == "max" else -1
    judged = []

    def evaluate(weights):
        judged.append(float(weights[0][0]))
        return -sign * abs(float(weights[0][0]) - 2.0)

    members = [[np.array([9.0])], [np.array([1.0])], [np.array([3.5])], [np.array([-20.0])]]
    soup = greedy_soup(members, evaluate, mode=mode)
    assert soup.members == (1, 2)
    assert soup.weights[0].tolist() == [2.25]
    assert soup.member_scores == tuple(-sign * value for value in (7.0, 1.0, 1.5, 22.0))
    assert soup.score == pytest.approx(-sign * 0.25)
    assert len(judged) <= 2 * len(members)
    assert average_weights(members, evaluate=evaluate, mode=mode)[0].tolist() == [2.25]


def test_a_greedy_soup_is_never_worse_than_its_best_member_on_a_real_model():
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 4)).astype("float32")
    y = (x[:, 0] + 0.5 * rng.normal(size=200) > 0).astype("int32")
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="head")])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(True), metrics=["accuracy"])
    start, members = model.get_weights(), []
    for _ in range(3):
        model.set_weights(start)
        model.fit(x[:100], y[:100], epochs=2, verbose=0)
        members.append(model.get_weights())

    def evaluate(weights):
        model.set_weights(weights)
        return model.evaluate(x[100:], y[100:], verbose=0)[1]

    soup = greedy_soup(members, evaluate)
    assert soup.score >= max(soup.member_scores)
    assert evaluate(soup.weights) == soup.score


def test_members_that_diverged_are_left_out():
    members = [[np.array([1.0])], [np.array([np.nan])]]
    with pytest.raises(
        ValueError, match=r"`members\[1\]` holds NaN.*Leave it out, or give `evaluate`"
    ):
        average_weights(members)
    assert greedy_soup(members, lambda w: float(w[0][0])).members == (0,)
    with pytest.raises(ValueError, match="finite number for at least one member"):
        greedy_soup(members, lambda w: float("nan"))
    with pytest.raises(TypeError, match="`evaluate` must be callable"):
        greedy_soup(members, None)
