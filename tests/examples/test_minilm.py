import keras
import numpy as np
import pytest

import keras_transfer as ktf
from examples.pretrained import minilm, word_vectors
from examples.pretrained.minilm_reference import TEXTS, reference_outputs

pytest.importorskip("tokenizers")


def test_mean_vectors_agree_with_the_pytorch_original():
    # Of texts of different lengths, so that a mask that is lost on the way would show.
    assert len({int(n) for n in (minilm.tokenize(TEXTS, 24) != 0).sum(axis=1)}) == 3
    assert minilm.largest_difference() < 1e-5
    assert np.ptp(reference_outputs()) > 1


def test_the_head_of_a_transfer_model_takes_the_mean_over_what_is_no_padding(monkeypatch):
    monkeypatch.setattr(minilm, "_LAYERS", 1)
    backbone = minilm.minilm()
    model = ktf.TransferModel(backbone, ktf.layers.ClassificationHead(num_classes=2))
    numbers = minilm.tokenize(TEXTS[:1], 24)
    short = numbers[:, : int((numbers != 0).sum())]
    np.testing.assert_allclose(model(numbers), model(short), atol=1e-6)
    # The control: `Add` itself drops the mask that attention took off its input.
    monkeypatch.setattr(minilm, "Residual", keras.layers.Add)
    unmasked = minilm.minilm()
    assert getattr(unmasked(numbers), "_keras_mask", None) is None
    lost = np.asarray(model.head(unmasked(numbers)))
    assert np.abs(lost - np.asarray(model(short))).max() > 0.01


def test_every_weight_comes_from_the_file_and_its_groups_can_be_cached():
    model = minilm.minilm(None)
    report = ktf.weights.transfer_weights(
        minilm.WEIGHTS.locate(), model, mapping=minilm._MAPPING, source_layout="torch"
    )
    assert report.copied_share == 1
    assert model.count_params() == 22_565_376
    assert {path for path in report.unused if "position_ids" not in path} == {
        "pooler.dense.bias",
        "pooler.dense.weight",
    }
    groups = ktf.backbone_groups(model, "blocks")
    assert len(groups) > 6
    assert all(group.boundary is not None for group in groups)


def test_unknown_weights_are_refused():
    with pytest.raises(ValueError, match=r"must be 'sentences' or None\. Received: weights='bert'"):
        minilm.minilm("bert")


def test_word_vectors_are_those_of_their_tokens():
    vectors = word_vectors.word_vectors()
    assert vectors.shape == (32_001, 256)
    assert not vectors[0].any()
    good, great, table = (
        vectors[row[row != 0]].mean(axis=0)
        for row in word_vectors.tokenize(["good", "great", "table"], 4)
    )

    def likeness(one, other):
        return one @ other / np.linalg.norm(one) / np.linalg.norm(other)

    assert likeness(good, great) > likeness(good, table) + 0.1
    assert word_vectors.tokenize(["a b c d e f", ""], 3).shape == (2, 3)
    assert word_vectors.tokenize([""], 3).tolist() == [[0, 0, 0]]
