"""Tiny backbones of KerasHub with random weights: dictionaries as inputs, tasks with a `.backbone`.

Run where the `hub` extra is installed.
"""

import warnings

import keras
import numpy as np
import pytest

import keras_transfer as ktf

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what its own imports warn of
    keras_hub = pytest.importorskip("keras_hub")


def bert():
    return keras_hub.models.BertBackbone(
        vocabulary_size=50,
        num_layers=2,
        num_heads=2,
        hidden_dim=8,
        intermediate_dim=16,
        max_sequence_length=6,
        dropout=0.0,
    )


def sentences(count=16):
    """Token numbers of half-padded sentences, as KerasHub's preprocessors give them, and labels."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 50, size=(count, 6))
    tokens[::2, 3:] = 0
    inputs = {
        "token_ids": tokens,
        "padding_mask": tokens != 0,
        "segment_ids": np.zeros_like(tokens),
    }
    return inputs, np.arange(count) % 2


def classifier(backbone, features="sequence_output"):
    head = ktf.layers.ClassificationHead(num_classes=2, features_key=features)
    model = ktf.TransferModel(backbone, head)
    model.compile("adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


class Snapshots(keras.callbacks.Callback):
    """Keeps the backbone's weights at each epoch's end."""

    def on_train_begin(self, logs=None):
        self.kept = [self.model.backbone.get_weights()]

    def on_epoch_end(self, epoch, logs=None):
        self.kept.append(self.model.backbone.get_weights())

    def moved(self, epoch):
        pairs = zip(self.kept[epoch], self.kept[epoch + 1], strict=True)
        return [not np.array_equal(before, after) for before, after in pairs]


def test_a_text_backbone_with_dictionary_inputs_is_probed_and_then_tuned():
    # The head reads the pooler, BERT's last layer; `sequence_output` would leave it out.
    model = classifier(bert(), "pooled_output")
    assert len(model.layer_groups) >= 3
    inputs, labels = sentences()
    seen = Snapshots()
    plan = ktf.recipes.lp_ft(1, 1, probe_lr=1e-2, fine_tune_lr=1e-2)
    unfreezing = ktf.callbacks.GradualUnfreezing(plan, verbose=0)
    history = model.fit(inputs, labels, batch_size=8, callbacks=[unfreezing, seen], verbose=0)
    assert history.history["stage"] == [0, 1]
    assert not any(seen.moved(0))
    assert len(seen.kept[0]) > 30
    assert all(seen.moved(1))


def test_dictionary_inputs_are_cached_to_the_same_weights():
    inputs, labels = sentences()
    backbone = bert()
    start = backbone.get_weights()
    ends = []
    for cached in (True, False):
        keras.utils.set_random_seed(0)
        backbone = bert()
        backbone.set_weights(start)
        model = classifier(backbone)
        plan = ktf.recipes.linear_probe(epochs=2, peak_lr=1e-2)
        model.fit(
            inputs,
            labels,
            batch_size=8,
            callbacks=[ktf.callbacks.GradualUnfreezing(plan, verbose=0)],
            cache_features=cached,
            verbose=0,
        )
        ends.append(model.head.get_weights())
    for one, other in zip(*ends, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_the_backbone_of_a_task_goes_on_without_its_head():
    task = keras_hub.models.BertTextClassifier(backbone=bert(), num_classes=3, preprocessor=None)
    model = classifier(task.backbone)
    inputs, _ = sentences()
    assert model.predict(inputs, verbose=0).shape == (16, 2)
    other = bert()
    report = ktf.weights.transfer_weights(task, other)
    assert report.copied_share == 1
    for one, two in zip(other.get_weights(), task.backbone.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)


def test_an_image_backbone_keeps_its_statistics_in_every_stage():
    backbone = keras_hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[3],
        stackwise_num_filters=[64],
        stackwise_num_blocks=[1],
        stackwise_num_strides=[1],
        block_type="basic_block",
        image_shape=(16, 16, 3),
    )
    model = ktf.TransferModel(backbone, ktf.layers.ClassificationHead(num_classes=2))
    model.compile("adam", loss="sparse_categorical_crossentropy")
    statistics = [
        w for w in backbone.non_trainable_weights if w.path.rpartition("/")[2].startswith("moving")
    ]
    before = [np.array(w) for w in statistics]
    images = np.random.default_rng(0).normal(size=(8, 16, 16, 3)).astype("float32")
    plan = ktf.recipes.lp_ft(1, 1)
    unfreezing = ktf.callbacks.GradualUnfreezing(plan, verbose=0)
    model.fit(images, np.arange(8) % 2, callbacks=[unfreezing], verbose=0)
    assert len(statistics) >= 6
    for weight, value in zip(statistics, before, strict=True):
        np.testing.assert_array_equal(np.array(weight), value)
