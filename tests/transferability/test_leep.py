import math

import numpy as np
import pytest

from keras_transfer.transferability import leep
from tests.transferability import scores


def paper_leep(probabilities, labels):
    """The three steps of the paper, in loops."""
    samples, sources = probabilities.shape
    classes = sorted(set(labels.tolist()))
    joint = {
        (y, z): sum(probabilities[i, z] for i in range(samples) if labels[i] == y) / samples
        for y in classes
        for z in range(sources)
    }
    marginal = [sum(joint[y, z] for y in classes) for z in range(sources)]
    total = 0.0
    for i in range(samples):
        total += math.log(
            sum(joint[labels[i], z] / marginal[z] * probabilities[i, z] for z in range(sources))
        )
    return total / samples


def test_it_is_the_papers_formula():
    probabilities, labels = scores.soft_predictions()
    expected = paper_leep(probabilities, labels)
    assert leep(probabilities, labels) == pytest.approx(expected, abs=1e-12)


def test_certain_and_right_predictions_score_zero():
    labels = np.array([0, 1, 2, 0])
    assert leep(np.eye(5)[[4, 2, 1, 4]], labels) == 0.0


def test_predictions_that_say_nothing_score_the_negative_label_entropy():
    labels = np.array([0, 0, 0, 1])
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert leep(np.full((4, 7), 1 / 7), labels) == pytest.approx(-entropy, abs=1e-12)


def test_a_source_class_that_is_never_predicted_changes_nothing():
    probabilities, labels = scores.soft_predictions()
    padded = np.concatenate([probabilities, np.zeros((80, 2))], axis=1)
    assert leep(padded, labels) == pytest.approx(leep(probabilities, labels), abs=1e-12)


def test_renaming_target_and_source_classes_changes_nothing():
    probabilities, labels = scores.soft_predictions()
    score = leep(probabilities, labels)
    assert leep(probabilities, np.array([7, 0, 3])[labels]) == pytest.approx(score, abs=1e-12)
    assert leep(probabilities[:, ::-1], labels) == pytest.approx(score, abs=1e-12)


def test_the_more_predictions_lean_on_the_label_the_higher_the_score():
    ladder = [leep(*scores.soft_predictions(strength=s)) for s in (0.0, 1.0, 2.0, 4.0)]
    assert ladder == sorted(ladder)
    assert ladder[-1] > ladder[0] + 0.3


def test_logits_are_refused_with_the_remedy():
    with pytest.raises(ValueError, match=r"must be probabilities.*Apply `keras.ops.softmax`"):
        leep(np.array([[2.0, -1.0], [0.5, 0.5]]), np.array([0, 1]))


def test_float16_softmax_outputs_are_accepted():
    probabilities, labels = scores.soft_predictions()
    half = probabilities.astype(np.float16)
    assert leep(half, labels) == pytest.approx(leep(probabilities, labels), abs=2e-3)
