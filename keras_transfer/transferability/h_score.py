"""H-score: the share of the features' variance that lies between the classes."""

from __future__ import annotations

from typing import Any

import numpy as np

from keras_transfer.transferability import _inputs
from keras_transfer.transferability._inputs import Floats


def h_score(
    features: Any,
    labels: Any,
    *,
    shrinkage: bool | str = "auto",
    num_classes: int | None = None,
) -> float:
    r"""Between-class variance of the features, measured in units of their covariance.

    `tr(cov(f)^+ cov(E[f | y]))`: large where class means lie far apart and features
    are not redundant. With fewer examples than features the sample covariance is
    singular and every feature set scores the same; shrinking it towards a multiple
    of the identity (Ledoit and Wolf) keeps the score meaningful. Higher is better;
    compare only scores on the same examples and labels.

    Args:
        features: Features of the target examples under one pretrained backbone, real
            and finite, in any unit.
        labels: Class of each example, whole numbers counted from 0.
        shrinkage: Whether the covariance is shrunk: `True`, `False`, or `"auto"`
            (where there are no more examples than features).
        num_classes: Number of classes, to check the labels' range against.

    Returns:
        The score, at least 0 and at most the number of classes less one (without
        shrinkage).

    Raises:
        ValueError: If shapes disagree, features are not finite or all the same,
            labels are outside their range, or there is one class.
        TypeError: If labels are not whole numbers.

    Shape:
        - features: `(samples, features)`
        - labels: `(samples,)`
        - score: scalar

    Example:

    >>> import numpy as np
    >>> from keras_transfer.transferability import h_score
    >>> rng = np.random.default_rng(0)
    >>> labels = np.arange(60) % 3
    >>> good = np.eye(3)[labels] + 0.3 * rng.normal(size=(60, 3))
    >>> noise = rng.normal(size=(60, 3))
    >>> round(h_score(good, labels), 3), round(h_score(noise, labels), 3)
    (1.606, 0.048)

    Reference:
        - [Bao et al., 2019](https://doi.org/10.1109/ICIP.2019.8803726)
        - [Ibrahim et al., 2021](https://arxiv.org/abs/2110.06893), with shrinkage
        - [Ledoit & Wolf, 2004](https://doi.org/10.1016/S0047-259X(03)00096-4)
    """
    checked = _inputs.checked_features(features)
    _inputs.refuse_constant_features(checked)
    if not (isinstance(shrinkage, bool) or shrinkage == "auto"):
        raise ValueError(
            f"`shrinkage` must be True, False or 'auto'. Received: shrinkage={shrinkage!r}"
        )
    samples, width = checked.shape
    classes = _inputs.checked_labels(labels, samples, num_classes=num_classes)
    index, counts = _inputs.class_of_each(classes)
    if shrinkage == "auto":
        shrinkage = samples <= width
    centered = checked - checked.mean(axis=0)
    left, singular, _ = np.linalg.svd(centered, full_matrices=False)
    variances = singular**2 / samples
    # Class means lie in the span of the features, so their coordinates along the singular
    # vectors say everything; no (features, features) matrix is needed.
    means = _inputs.class_means(left * singular, index, counts)
    between = (counts[:, None] * means**2).sum(axis=0)
    if not shrinkage:
        kept = variances > variances.max() * max(samples, width) * np.finfo(np.float64).eps
        return float((between[kept] / (samples * variances[kept])).sum())
    share = ledoit_wolf_share(centered, variances)
    shrunk = (1 - share) * variances + share * variances.sum() / width
    # The authors' code pairs a covariance over N with one of class means over N - 1.
    return float((1 - share) * (between / ((samples - 1) * shrunk)).sum())


def ledoit_wolf_share(centered: Floats, variances: Floats) -> float:
    """Returns how far the covariance is pulled to a multiple of the identity, in [0, 1].

    The share that minimises the expected squared Frobenius distance to the true
    covariance, estimated from the data (Ledoit and Wolf, lemmas 3.2 to 3.4).

    Args:
        centered: Features less their mean, of shape `(samples, features)`.
        variances: Eigenvalues of their covariance (over N), without the zeros that
            fewer samples than features leave.
    """
    samples, width = centered.shape
    mean_variance = variances.sum() / width
    # ||S - mu I||^2 and the mean of ||x x' - S||^2 over samples, both Frobenius.
    distance = float((variances**2).sum() - width * mean_variance**2)
    lengths = (centered**2).sum(axis=1)
    spread = float((lengths**2).mean() - (variances**2).sum()) / samples
    if distance <= 0:  # Already a multiple of the identity: shrinking changes nothing.
        return 0.0
    return float(min(max(spread, 0.0), distance) / distance)
