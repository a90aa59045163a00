import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_transfer.transferability import h_score
from keras_transfer.transferability.h_score import ledoit_wolf_share
from tests.transferability import scores


def conditional_means(features, labels):
    return np.stack([features[labels == label].mean(axis=0) for label in labels])


def paper_h_score(features, labels):
    """tr(cov(f)^+ cov(E[f|y])) as it stands."""
    between = np.cov(conditional_means(features, labels), rowvar=False)
    return np.trace(np.linalg.pinv(np.cov(features, rowvar=False)) @ between)


def ledoit_wolf(features):
    """The estimator of Ledoit and Wolf (2004), one sample at a time; covariance over N."""
    samples, width = features.shape
    rows = features - features.mean(axis=0)
    sample = rows.T @ rows / samples
    mu = np.trace(sample) / width
    d2 = np.linalg.norm(sample - mu * np.eye(width)) ** 2 / width
    b2 = sum(np.linalg.norm(np.outer(r, r) - sample) ** 2 / width for r in rows) / samples**2
    share = min(b2, d2) / d2
    return (1 - share) * sample + share * mu * np.eye(width), share


def paper_shrunk_h_score(features, labels):
    covariance, share = ledoit_wolf(features)
    between = np.cov(conditional_means(features, labels), rowvar=False)
    return np.trace(np.linalg.inv(covariance) @ ((1 - share) * between))


@pytest.mark.parametrize("noise", [0.3, 3.0])
def test_it_is_the_papers_formula(noise):
    features, labels = scores.separable(noise=noise)
    assert h_score(features, labels) == pytest.approx(paper_h_score(features, labels), rel=1e-9)


@pytest.mark.parametrize("shape", [(20, 40), (90, 5)])
def test_with_shrinkage_it_is_the_papers_formula(shape):
    features, labels = scores.separable(samples=shape[0], width=shape[1], noise=1.0)
    expected = paper_shrunk_h_score(features, labels)
    assert h_score(features, labels, shrinkage=True) == pytest.approx(expected, rel=1e-9)


def test_the_share_of_shrinkage_is_ledoit_and_wolfs():
    for shape in [(20, 40), (90, 5), (300, 3)]:
        features, _ = scores.separable(samples=shape[0], width=shape[1], noise=1.0)
        centered = features - features.mean(axis=0)
        variances = np.linalg.svd(centered, compute_uv=False) ** 2 / shape[0]
        share = ledoit_wolf_share(centered, variances)
        assert share == pytest.approx(ledoit_wolf(features)[1], rel=1e-9)


def test_auto_shrinks_only_where_samples_do_not_outnumber_features():
    few, few_labels = scores.separable(samples=20, width=40)
    many, many_labels = scores.separable(samples=60, width=5)
    assert h_score(few, few_labels) == h_score(few, few_labels, shrinkage=True)
    assert h_score(many, many_labels) == h_score(many, many_labels, shrinkage=False)


def test_without_shrinkage_few_samples_score_the_same_for_every_backbone():
    # Why "auto" exists: the unshrunk score is stuck at its bound, classes less one.
    for data in (scores.separable(samples=20, width=40), scores.noise(samples=20, width=40)):
        assert h_score(*data, shrinkage=False) == pytest.approx(2.0)


@given(st.integers(0, 1000), st.integers(2, 4), st.integers(1, 6))
def test_it_lies_between_zero_and_classes_less_one(seed, classes, width):
    score = h_score(*scores.noise(samples=40, classes=classes, width=width, seed=seed))
    assert 0 <= score <= classes - 1


def test_invertible_maps_of_the_features_change_nothing():
    features, labels = scores.separable(noise=1.0)
    matrix = np.random.default_rng(2).normal(size=(5, 5))
    moved = features @ matrix + 7
    assert h_score(moved, labels) == pytest.approx(h_score(features, labels), rel=1e-7)


def test_copies_of_a_feature_and_dead_features_add_nothing():
    features, labels = scores.separable(noise=1.0)
    padded = np.concatenate([features, features[:, :2], np.zeros((90, 3))], axis=1)
    assert h_score(padded, labels) == pytest.approx(h_score(features, labels), rel=1e-7)


def test_renaming_classes_changes_nothing():
    features, labels = scores.separable(noise=1.0)
    renamed = np.array([5, 0, 9])[labels]
    assert h_score(features, renamed) == pytest.approx(h_score(features, labels), rel=1e-12)


@pytest.mark.parametrize("width", [5, 200])
def test_separable_features_score_above_noise(width):
    good, bad = scores.separable(width=width), scores.noise(width=width)
    assert h_score(*good) > 2 * h_score(*bad)


def test_an_unknown_shrinkage_is_refused():
    with pytest.raises(ValueError, match="Received: shrinkage='always'"):
        h_score(*scores.separable(), shrinkage="always")
