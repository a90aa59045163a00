"""NCE: how much the source model's hard predictions leave unknown of the target's classes."""

from __future__ import annotations

from typing import Any

import numpy as np

from keras_transfer.transferability import _inputs


def nce(source_labels: Any, labels: Any, *, num_classes: int | None = None) -> float:
    r"""Negative conditional entropy `-H(y | z)` of target labels given source labels.

    `z` is the source class that the source model predicts for the target example
    (the argmax of its outputs). The score is 0 where it determines the target class,
    and `-H(y)` where it says nothing about it. It needs the source head. Higher is
    better.

    Args:
        source_labels: Source class predicted for each target example, whole numbers
            counted from 0. `probabilities.argmax(axis=-1)` makes them.
        labels: Target class of each example, whole numbers counted from 0.
        num_classes: Number of target classes, to check the labels' range against.

    Returns:
        The score in nats, at most 0.

    Raises:
        ValueError: If shapes disagree, labels are outside their range, or there is
            one target class.
        TypeError: If either kind of label is not whole numbers.

    Shape:
        - source_labels: `(samples,)`
        - labels: `(samples,)`
        - score: scalar

    Example:

    >>> import numpy as np
    >>> from keras_transfer.transferability import nce
    >>> labels = np.array([0, 0, 1, 1])
    >>> nce(np.array([7, 7, 2, 2]), labels), round(nce(np.array([7, 2, 7, 2]), labels), 4)
    (0.0, -0.6931)

    Reference:
        - [Tran et al., 2019](https://arxiv.org/abs/1908.08142)
    """
    samples = np.asarray(labels).shape[0] if np.ndim(labels) else 0
    classes = _inputs.checked_labels(
        labels, samples, beside="source_labels", num_classes=num_classes
    )
    sources = _inputs.whole_numbers(source_labels, samples, name="source_labels", beside="labels")
    index, counts = _inputs.class_of_each(classes)
    source_index, source_counts = _inputs.class_of_each(sources)
    together = np.zeros((counts.size, source_counts.size))
    np.add.at(together, (index, source_index), 1.0)
    given = together / source_counts
    # 0 log 0 is 0: pairs that never occur carry no entropy.
    logs = np.log(given, out=np.zeros_like(given), where=given > 0)
    return float((together * logs).sum() / samples)
