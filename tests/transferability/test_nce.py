import math
from collections import Counter

import numpy as np
import pytest

from keras_transfer.transferability import leep, nce
from tests.transferability import scores


def paper_nce(source_labels, labels):
    """-H(y|z), from counted pairs."""
    pairs = Counter(zip(source_labels.tolist(), labels.tolist(), strict=True))
    sources = Counter(source_labels.tolist())
    total = sum(count * math.log(count / sources[z]) for (z, _), count in pairs.items())
    return total / labels.size


def test_it_is_the_papers_formula():
    probabilities, labels = scores.soft_predictions()
    predicted = probabilities.argmax(axis=-1)
    assert nce(predicted, labels) == pytest.approx(paper_nce(predicted, labels), abs=1e-12)


def test_it_is_leep_of_one_hot_predictions():
    # LEEP of one-hot predictions is the mean of log P(y|z): the same number.
    probabilities, labels = scores.soft_predictions()
    predicted = probabilities.argmax(axis=-1)
    assert nce(predicted, labels) == pytest.approx(leep(np.eye(6)[predicted], labels), abs=1e-12)


def test_source_labels_that_say_nothing_score_the_negative_label_entropy():
    labels = np.array([0, 0, 0, 1])
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert nce(np.full(4, 900), labels) == pytest.approx(-entropy, abs=1e-12)


def test_source_labels_that_determine_the_class_score_zero():
    assert nce(np.array([4, 2, 1, 4, 3]), np.array([0, 1, 2, 0, 0])) == 0.0


def test_renaming_classes_on_either_side_changes_nothing():
    rng = np.random.default_rng(0)
    labels, source = rng.integers(0, 3, 50), rng.integers(0, 5, 50)
    score = nce(source, labels)
    names = np.array([70, 2, 999, 0, 5])
    assert nce(names[source], labels) == pytest.approx(score, abs=1e-12)
    assert nce(source, names[labels]) == pytest.approx(score, abs=1e-12)


def test_bad_source_labels_are_named():
    labels = np.array([0, 1, 1])
    with pytest.raises(ValueError, match=r"source_labels\[1\]=-1"):
        nce(np.array([0, -1, 2]), labels)
    with pytest.raises(TypeError, match="`source_labels` must be whole numbers"):
        nce(np.array([0.1, 0.2, 0.7]), labels)
    with pytest.raises(ValueError, match="Received: 2 in `source_labels`, 3 in `labels`"):
        nce(np.array([0, 1]), labels)
