"""LEEP: how well the source model's own class probabilities predict the target's classes."""

from __future__ import annotations

from typing import Any

import numpy as np

from keras_transfer.transferability import _inputs


def leep(source_probabilities: Any, labels: Any, *, num_classes: int | None = None) -> float:
    r"""Mean log-likelihood of the labels under the expected empirical predictor.

    The source model, head included, gives each target example a distribution over
    *source* classes; the empirical `P(y | z)` turns it into one over target classes.
    LEEP is the mean log probability that this gives to the true class. It needs the
    source head. Higher is better.

    Args:
        source_probabilities: Softmax outputs of the source model on the target
            examples, each row at least 0 and summing to 1.
        labels: Target class of each example, whole numbers counted from 0.
        num_classes: Number of target classes, to check the labels' range against.

    Returns:
        The score in nats per example, at most 0.

    Raises:
        ValueError: If shapes disagree, rows are not probabilities, labels are
            outside their range, or there is one class.
        TypeError: If labels are not whole numbers.

    Shape:
        - source_probabilities: `(samples, source_classes)`
        - labels: `(samples,)`
        - score: scalar

    Example:

    >>> import numpy as np
    >>> from keras_transfer.transferability import leep
    >>> probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.1, 0.9]])
    >>> round(leep(probabilities, np.array([0, 0, 1, 1])), 4)
    -0.3426

    Reference:
        - [Nguyen et al., 2020](https://arxiv.org/abs/2002.12462)
    """
    theta = _inputs.checked_probabilities(source_probabilities, "source_probabilities")
    classes = _inputs.checked_labels(
        labels, theta.shape[0], beside="source_probabilities", num_classes=num_classes
    )
    index, counts = _inputs.class_of_each(classes)
    joint = np.zeros((counts.size, theta.shape[1]))
    np.add.at(joint, index, theta / theta.shape[0])
    marginal = joint.sum(axis=0)
    seen = marginal > 0  # A source class that is never predicted has no P(y | z), and no weight.
    target_given_source = joint[:, seen] / marginal[seen]
    predicted = (theta[:, seen] * target_given_source[index]).sum(axis=1)
    return float(np.log(predicted).mean())
