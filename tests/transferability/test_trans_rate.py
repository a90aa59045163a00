import numpy as np
import pytest

from keras_transfer.transferability import trans_rate
from tests.transferability import scores


def paper_rate(rows, distortion):
    """1/2 log det(I + f'f / (n eps)), from the eigenvalues."""
    eigenvalues = np.linalg.eigvalsh(rows.T @ rows)
    return 0.5 * np.log1p(np.clip(eigenvalues, 0, None) / (len(rows) * distortion)).sum()


def paper_trans_rate(features, labels, distortion):
    centered = features - features.mean(axis=0)
    within = [paper_rate(centered[labels == c], distortion) for c in np.unique(labels)]
    return paper_rate(centered, distortion) - np.mean(within)


@pytest.mark.parametrize("shape", [(90, 5), (30, 60)])
@pytest.mark.parametrize("distortion", [1e-4, 0.5])
def test_it_is_the_papers_formula(shape, distortion):
    features, labels = scores.separable(samples=shape[0], width=shape[1], noise=1.0)
    expected = paper_trans_rate(features, labels, distortion)
    score = trans_rate(features, labels, distortion=distortion)
    assert score == pytest.approx(expected, rel=1e-8)


def test_moving_and_rotating_features_and_renaming_classes_change_nothing():
    features, labels = scores.separable(noise=1.0)
    score = trans_rate(features, labels)
    assert trans_rate(features @ scores.rotation(5) + 3, labels) == pytest.approx(score, rel=1e-8)
    renamed = np.array([5, 0, 9])[labels]
    assert trans_rate(features, renamed) == pytest.approx(score, rel=1e-12)


def test_scaling_features_is_scaling_the_distortion():
    features, labels = scores.separable(noise=1.0)
    scaled = trans_rate(10 * features, labels, distortion=1e-2)
    assert scaled == pytest.approx(trans_rate(features, labels, distortion=1e-4), rel=1e-9)


def test_features_far_larger_than_the_distortion_have_a_score():
    features, labels = scores.separable(samples=30, width=60, noise=1.0)
    # Each direction adds log(scale), to the whole and to what lies within the classes.
    directions = 29 - np.mean([np.sum(labels == c) for c in np.unique(labels)])
    grown = trans_rate(1e20 * features, labels) - trans_rate(1e10 * features, labels)
    assert grown == pytest.approx(directions * np.log(1e10), rel=1e-6)


def test_it_is_not_negative_for_balanced_classes():
    # log det is concave, so the mean rate within equal classes cannot exceed the whole's.
    for seed in range(20):
        assert trans_rate(*scores.noise(seed=seed)) >= 0


def test_separable_features_score_above_noise():
    assert trans_rate(*scores.separable()) > 2 * trans_rate(*scores.noise())


def test_with_fewer_examples_than_features_noise_scores_high_too():
    # The limit that the docstring names; the H-score's shrinkage has no counterpart here.
    good, bad = scores.separable(width=200), scores.noise(width=200)
    assert trans_rate(*bad) > trans_rate(*good)


def test_a_distortion_of_zero_is_refused():
    with pytest.raises(ValueError, match="`distortion` must be finite and above 0"):
        trans_rate(*scores.separable(), distortion=0)
