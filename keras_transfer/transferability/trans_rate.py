"""TransRate: how many more bits the features of all classes need than those of one class."""

from __future__ import annotations

from typing import Any

import numpy as np

from keras_transfer import _checks
from keras_transfer.transferability import _inputs
from keras_transfer.transferability._inputs import Floats


def trans_rate(
    features: Any, labels: Any, *, distortion: float = 1e-4, num_classes: int | None = None
) -> float:
    r"""Coding rate of the features less the mean coding rate within a class.

    `R(f) = 1/2 log det(I + f' f / (n distortion))` is the rate at which `n` centered
    features can be coded up to `distortion`. The difference stands for the mutual
    information between features and labels. Unlike LogME and H-score it depends on
    the features' unit: compare backbones whose features have about the same scale,
    or bring them there first. Give it several times more examples than features: with
    fewer, pure noise scores high as well. Higher is better.

    Args:
        features: Features of the target examples under one pretrained backbone, real
            and finite.
        labels: Class of each example, whole numbers counted from 0.
        distortion: Squared error allowed in coding a feature, in squared units of
            the features. Above 0. The paper's epsilon.
        num_classes: Number of classes, to check the labels' range against.

    Returns:
        The score in nats. Every class weighs the same, as in the authors' code.

    Raises:
        ValueError: If shapes disagree, features are not finite or all the same,
            labels are outside their range, there is one class, or `distortion` is
            not above 0.
        TypeError: If labels are not whole numbers.

    Shape:
        - features: `(samples, features)`
        - labels: `(samples,)`
        - score: scalar

    Example:

    >>> import numpy as np
    >>> from keras_transfer.transferability import trans_rate
    >>> rng = np.random.default_rng(0)
    >>> labels = np.arange(60) % 3
    >>> good = np.eye(3)[labels] + 0.3 * rng.normal(size=(60, 3))
    >>> noise = rng.normal(size=(60, 3))
    >>> round(trans_rate(good, labels), 3), round(trans_rate(noise, labels), 3)
    (0.537, 0.064)

    Reference:
        - [Huang et al., 2022](https://arxiv.org/abs/2106.09362)
    """
    checked = _inputs.checked_features(features)
    _inputs.refuse_constant_features(checked)
    classes = _inputs.checked_labels(labels, checked.shape[0], num_classes=num_classes)
    distortion = _checks.number(distortion, "distortion", above=0)
    index, counts = _inputs.class_of_each(classes)
    centered = checked - checked.mean(axis=0)
    within = [_coding_rate(centered[index == i], distortion) for i in range(counts.size)]
    return _coding_rate(centered, distortion) - float(np.mean(within))


def _coding_rate(rows: Floats, distortion: float) -> float:
    samples = rows.shape[0]
    # From the singular values: beside large features the determinant would lose the identity.
    singular = np.linalg.svd(rows / np.sqrt(samples * distortion), compute_uv=False)
    # What rounding left in directions without variance would count once features are large.
    kept = singular > singular.max() * max(rows.shape) * np.finfo(np.float64).eps
    return 0.5 * float(np.log1p(singular[kept] ** 2).sum())
