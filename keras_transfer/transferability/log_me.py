"""LogME: how probable the targets are under a Bayesian linear model on the features."""

from __future__ import annotations

from typing import Any

import numpy as np

from keras_transfer.transferability import _inputs
from keras_transfer.transferability._inputs import Floats

# The authors stop after 11 steps at a tolerance of 1e-3 on alpha / beta; the evidence is then
# within 1e-4 of its maximum. A step costs microseconds, so here it runs on.
_MOST_STEPS = 500
_TOLERANCE = 1e-10
# A residual of 0 (targets that the features reproduce exactly) has unbounded evidence. The
# authors add the same 1e-5; as a floor it leaves every other score alone.
_SMALLEST_RESIDUAL = 1e-5


def log_me(
    features: Any, labels: Any, *, regression: bool = False, num_classes: int | None = None
) -> float:
    r"""Log of the maximum evidence of the labels given the features, per example.

    A linear model with prior precision `alpha` on its weights and noise precision
    `beta` explains each class's 0/1 indicator; the evidence is maximised over both,
    and averaged over classes. It needs neither the source model's head nor training,
    ranks classification and regression tasks alike, and does not overfit as the
    likelihood of a fitted probe does. Higher is better; compare only scores on the
    same examples and labels.

    Args:
        features: Features of the target examples under one pretrained backbone, real
            and finite, in any unit (the score does not change with their scale).
        labels: Class of each example, whole numbers counted from 0; with
            `regression`, real-valued targets.
        regression: Whether `labels` are real-valued targets rather than classes.
        num_classes: Number of classes, to check the labels' range against. Classes
            without examples do not enter the mean. `None` takes what is present.

    Returns:
        Mean over classes (or targets) of the log evidence divided by the number of
        examples, in nats. Often between -1 and 1.

    Raises:
        ValueError: If shapes disagree, features or targets are not finite, features
            are all the same, labels are outside their range, or there is one class.
        TypeError: If labels are not whole numbers.

    Shape:
        - features: `(samples, features)`
        - labels: `(samples,)`; with `regression`, `(samples,)` or `(samples, targets)`
        - score: scalar

    Example:

    >>> import numpy as np
    >>> from keras_transfer.transferability import log_me
    >>> rng = np.random.default_rng(0)
    >>> labels = np.arange(60) % 3
    >>> good = np.eye(3)[labels] + 0.3 * rng.normal(size=(60, 3))
    >>> noise = rng.normal(size=(60, 3))
    >>> round(log_me(good, labels), 3), round(log_me(noise, labels), 3)
    (-0.192, -0.87)

    Reference:
        - [You et al., 2021](https://arxiv.org/abs/2102.11005)
        - [You et al., 2022](https://arxiv.org/abs/2110.10545), the fixed-point iteration
    """
    checked = _inputs.checked_features(features)
    _inputs.refuse_constant_features(checked)
    samples = checked.shape[0]
    # The evidence is the same in any unit of the features; unit scale keeps alpha in range.
    left, singular, _ = np.linalg.svd(checked / np.sqrt(np.mean(checked**2)), full_matrices=False)
    if regression:
        targets = _checked_targets(labels, samples)
        projected, lengths = targets.T @ left, (targets**2).sum(axis=0)
    else:
        classes = _inputs.checked_labels(labels, samples, num_classes=num_classes)
        index, counts = _inputs.class_of_each(classes)
        # A class's 0/1 indicator, projected, is the sum of its rows.
        projected = _inputs.class_means(left, index, counts) * counts[:, None]
        lengths = counts.astype(np.float64)
    power = projected**2
    outside = np.maximum(lengths - power.sum(axis=1), 0.0)
    evidences = [
        _maximum_evidence(singular**2, power[i], float(outside[i]), samples)
        for i in range(lengths.size)
    ]
    return float(np.mean(evidences))


def _maximum_evidence(variances: Floats, power: Floats, outside: float, samples: int) -> float:
    """Maximises the log evidence of one target over alpha and beta; returns it per example.

    Args:
        variances: Squared singular values of the features.
        power: Squared coordinates of the target along the left singular vectors.
        outside: Squared length of the target's part outside the features' span.
        samples: Number of examples.
    """
    alpha, beta, best, last = 1.0, 1.0, -np.inf, -np.inf
    for _ in range(_MOST_STEPS):
        ratio = alpha / beta
        weights = float((variances * power / (variances + ratio) ** 2).sum())
        residual = float((power / (1 + variances / ratio) ** 2).sum()) + outside
        residual = max(residual, _SMALLEST_RESIDUAL)
        # log |alpha I + beta F'F| - D log alpha: directions without variance cancel out. (The
        # authors' current code keeps D log alpha against min(N, D) terms where N < D.)
        evidence = 0.5 * (
            samples * np.log(beta / (2 * np.pi))
            - float(np.log1p(variances / ratio).sum())
            - beta * residual
            - alpha * weights
        )
        best = max(best, evidence)
        if abs(evidence - last) <= _TOLERANCE * samples:
            break
        last = evidence
        effective = float((variances / (variances + ratio)).sum())
        # Targets that the features do not explain drive alpha to infinity; the bound is far
        # out on the plateau that the evidence reaches there.
        alpha = min(effective / max(weights, 1e-30), 1e12)
        beta = max(samples - effective, 1e-12) / residual
    return best / samples


def _checked_targets(targets: Any, samples: int) -> Floats:
    array = np.asarray(targets)
    if array.ndim == 1:
        array = array[:, None]
    array = _inputs.checked_features(array, "labels")
    if array.shape[0] != samples:
        raise ValueError(
            "`labels` and `features` must have one row per example each. "
            f"Received: {array.shape[0]} in `labels`, {samples} in `features`"
        )
    constant = np.flatnonzero((array == array[0]).all(axis=0))
    if constant.size:
        raise ValueError(
            "A regression target that is the same for every example says nothing. "
            f"Received: target {int(constant[0])} always {array[0, constant[0]]:g}. Leave it out."
        )
    return array
