"""What all scores refuse, and in which words."""

import subprocess
import sys

import numpy as np
import pytest

from keras_transfer.transferability import h_score, leep, log_me, nce, trans_rate
from tests.transferability import scores

ON_FEATURES = [log_me, h_score, trans_rate]


def first_argument(score):
    """Valid data for the first argument of any score, beside 12 labels."""
    if score is leep:
        return np.eye(3)[np.arange(12) % 3]
    if score is nce:
        return np.arange(12) % 3
    return scores.separable(samples=12)[0]


LABELS = np.arange(12) % 2


@pytest.mark.parametrize("score", ON_FEATURES)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_not_finite_are_counted_and_the_first_is_named(score, value):
    features, labels = scores.separable()
    features[3, 1] = features[40, 0] = value
    with pytest.raises(ValueError, match=rf"2 values.*features\[3, 1\]={value}"):
        score(features, labels)


@pytest.mark.parametrize("score", ON_FEATURES)
def test_features_that_are_all_the_same_are_refused(score):
    with pytest.raises(ValueError, match=r"same for every example.*12 equal rows"):
        score(np.ones((12, 3)), LABELS)


@pytest.mark.parametrize("factor", [1e200, 1e-200])
@pytest.mark.parametrize("score", ON_FEATURES)
def test_features_whose_squares_are_beyond_all_numbers_are_refused(score, factor):
    features = np.random.default_rng(0).normal(size=(12, 3))
    with pytest.raises(ValueError, match=r"can be squared.*e[+-](199|200)\. Rescale"):
        score(features * factor, LABELS)
    assert np.isfinite(score(features * 1e30, LABELS))


@pytest.mark.parametrize("score", ON_FEATURES)
def test_feature_maps_are_refused_with_the_remedy(score):
    with pytest.raises(ValueError, match=r"features.shape=\(12, 4, 4, 3\). Pool or flatten"):
        score(np.ones((12, 4, 4, 3)), LABELS)


@pytest.mark.parametrize("score", [*ON_FEATURES, leep])
def test_text_and_single_rows_are_refused(score):
    with pytest.raises(TypeError, match=r"must hold real numbers. Received: an array of dtype"):
        score(np.array([["a"], ["b"]]), np.array([0, 1]))
    with pytest.raises(ValueError, match="at least 2 samples"):
        score(np.ones((1, 3)), np.array([0]))


@pytest.mark.parametrize("score", [*ON_FEATURES, leep, nce])
def test_one_class_is_refused(score):
    with pytest.raises(ValueError, match=r"at least 2 classes.*12 examples, all of class 4"):
        score(first_argument(score), np.full(12, 4))


@pytest.mark.parametrize("score", [*ON_FEATURES, leep, nce])
def test_labels_outside_the_range_are_counted_and_the_first_is_named(score):
    labels = LABELS.copy()
    labels[[5, 7]] = -1, 9
    with pytest.raises(ValueError, match=r"at least 0. Received: 1 outside.*labels\[5\]=-1"):
        score(first_argument(score), labels)
    with pytest.raises(ValueError, match=r"from 0 to 3. Received: 2 outside.*num_classes=4"):
        score(first_argument(score), labels, num_classes=4)


@pytest.mark.parametrize("score", [*ON_FEATURES, leep, nce])
def test_one_hot_float_and_named_labels_are_refused_with_the_remedy(score):
    with pytest.raises(ValueError, match=r"Turn one-hot labels into numbers with `argmax"):
        score(first_argument(score), np.eye(2)[LABELS])
    with pytest.raises(TypeError, match=r"`labels` must be whole numbers.*dtype float64"):
        score(first_argument(score), LABELS.astype(float))
    with pytest.raises(TypeError, match=r"unique.*return_inverse"):
        score(first_argument(score), np.array(["cat", "dog"])[LABELS])


@pytest.mark.parametrize("score", [*ON_FEATURES, leep, nce])
def test_labels_in_a_column_count_as_labels(score):
    first = first_argument(score)
    assert score(first, LABELS[:, None]) == score(first, LABELS)


@pytest.mark.parametrize("score", [*ON_FEATURES, leep])
def test_counts_that_disagree_are_both_named(score):
    with pytest.raises(ValueError, match="Received: 11 in `labels`, 12 in `"):
        score(first_argument(score), LABELS[:-1])


@pytest.mark.parametrize("score", [*ON_FEATURES, leep, nce])
def test_input_is_left_as_it_was_and_the_result_is_a_float(score):
    first, labels = first_argument(score), LABELS.copy()
    before = first.copy()
    assert type(score(first, labels)) is float
    np.testing.assert_array_equal(first, before)


def test_the_scores_need_numpy_alone():
    script = (
        "import sys, types; package = types.ModuleType('keras_transfer');"
        "package.__path__ = ['keras_transfer']; sys.modules['keras_transfer'] = package;"
        "import keras_transfer.transferability;"
        "bad = {'keras', 'tensorflow', 'sklearn', 'scipy'} & set(sys.modules); assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
