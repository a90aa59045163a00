import numpy as np
import pytest

from keras_transfer.transferability import log_me
from tests.transferability import scores


def gaussian_log_density(target, features, alpha, beta):
    """Log density of the target: the model's weights are integrated out by hand."""
    covariance = np.eye(target.size) / beta + features @ features.T / alpha
    return -0.5 * (
        target @ np.linalg.solve(covariance, target)
        + np.linalg.slogdet(covariance)[1]
        + target.size * np.log(2 * np.pi)
    )


def paper_evidence(target, features, alpha, beta):
    """The evidence as the paper writes it, with the D x D matrix A and its inverse."""
    samples, width = features.shape
    a = alpha * np.eye(width) + beta * features.T @ features
    mean = beta * np.linalg.inv(a) @ features.T @ target
    return (
        width / 2 * np.log(alpha)
        + samples / 2 * np.log(beta)
        - samples / 2 * np.log(2 * np.pi)
        - beta / 2 * ((features @ mean - target) ** 2).sum()
        - alpha / 2 * (mean @ mean)
        - 0.5 * np.linalg.slogdet(a)[1]
    )


def paper_log_me(target, features):
    """The paper's fixed-point loop, written with eigenvalues of F'F."""
    samples, width = features.shape
    alpha = beta = 1.0
    eigenvalues = np.linalg.eigvalsh(features.T @ features)
    for _ in range(2000):
        a = alpha * np.eye(width) + beta * features.T @ features
        mean = beta * np.linalg.inv(a) @ features.T @ target
        gamma = (beta * eigenvalues / (alpha + beta * eigenvalues)).sum()
        alpha = gamma / (mean @ mean)
        beta = (samples - gamma) / ((features @ mean - target) ** 2).sum()
    return paper_evidence(target, features, alpha, beta) / samples, alpha, beta


@pytest.mark.parametrize("shape", [(60, 4), (40, 12)])
def test_it_is_the_papers_fixed_point_averaged_over_classes(shape):
    features, labels = scores.separable(samples=shape[0], width=shape[1], noise=1.5)
    per_class = [paper_log_me((labels == c).astype(float), features)[0] for c in range(3)]
    assert log_me(features, labels) == pytest.approx(np.mean(per_class), abs=1e-8)


def test_no_other_precisions_give_more_evidence():
    features, labels = scores.separable(samples=50, width=4, noise=1.5)
    target = (labels == 0).astype(float)
    best, alpha, beta = paper_log_me(target, features)
    for a in alpha * np.geomspace(0.2, 5, 15):
        for b in beta * np.geomspace(0.2, 5, 15):
            density = gaussian_log_density(target, features, a, b)
            assert density == pytest.approx(paper_evidence(target, features, a, b), abs=1e-8)
            assert density / target.size <= best + 1e-12


def test_with_more_features_than_samples_it_is_the_density_of_the_targets():
    rng = np.random.default_rng(1)
    features = rng.normal(size=(30, 50))
    labels = (features[:, :20].sum(axis=1) + 4 * rng.normal(size=30) > 0).astype(int)
    grid = np.geomspace(1e-3, 1e5, 120)
    best = [
        max(gaussian_log_density((labels == c) * 1.0, features, a, b) for a in grid for b in grid)
        for c in (0, 1)
    ]
    score = log_me(features, labels)
    # A grid can only come from below, and only so near.
    assert np.mean(best) / 30 - 1e-9 <= score <= np.mean(best) / 30 + 0.02


def test_regression_scores_each_target_and_averages():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(80, 5))
    targets = features @ rng.normal(size=(5, 2)) + 0.5 * rng.normal(size=(80, 2))
    expected = [paper_log_me(targets[:, i], features)[0] for i in range(2)]
    assert log_me(features, targets, regression=True) == pytest.approx(np.mean(expected), abs=1e-8)
    alone = log_me(features, targets[:, 0], regression=True)
    assert alone == pytest.approx(expected[0], abs=1e-8)


@pytest.mark.parametrize("scale", [1e-6, 1e-2, 255.0, 1e6])
def test_the_unit_of_the_features_does_not_matter(scale):
    features, labels = scores.separable()
    assert log_me(features * scale, labels) == pytest.approx(log_me(features, labels), abs=1e-8)


def test_rotating_features_renaming_classes_and_reordering_examples_change_nothing():
    features, labels = scores.separable(noise=1.0)
    score = log_me(features, labels)
    assert log_me(features @ scores.rotation(5), labels) == pytest.approx(score, abs=1e-8)
    assert log_me(features, np.array([5, 0, 9])[labels]) == pytest.approx(score, abs=1e-12)
    order = np.random.default_rng(3).permutation(labels.size)
    assert log_me(features[order], labels[order]) == pytest.approx(score, abs=1e-8)


@pytest.mark.parametrize("width", [5, 200])
def test_separable_features_score_above_noise(width):
    assert log_me(*scores.separable(width=width)) > log_me(*scores.noise(width=width)) + 0.1


def test_features_that_hold_the_labels_give_a_large_finite_score():
    _, labels = scores.noise()
    assert 3 < log_me(np.eye(3)[labels], labels) < 20


def test_features_orthogonal_to_the_labels_give_a_finite_score():
    labels = np.array([0, 1, 0, 1] * 5)
    features = np.array([[1.0], [1.0], [-1.0], [-1.0]] * 5)
    assert np.isfinite(log_me(features, labels))


def test_float16_features_are_computed_in_float64():
    features, labels = scores.separable()
    half = (features * 300).astype(np.float16)
    assert log_me(half, labels) == pytest.approx(log_me(half.astype(float), labels), abs=0)


def test_bad_regression_targets_are_refused():
    features, _ = scores.separable()
    with pytest.raises(ValueError, match=r"same for every example.*target 0 always 2"):
        log_me(features, np.full(90, 2.0), regression=True)
    with pytest.raises(ValueError, match="Received: 4 in `labels`, 90 in `features`"):
        log_me(features, np.arange(4.0), regression=True)
