"""The three examples, shortened: on small networks, a few examples and two seeds."""

import dataclasses

import keras
import numpy as np
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("scipy")
pytest.importorskip("tensorflow_datasets")

import keras_transfer as ktf
from examples import image_classification, speech_classification, text_classification
from examples.datasets import rated_sentences
from examples.pretrained import minilm, voice_encoder, word_vectors

ARCHIVE = rated_sentences.FOLDER / rated_sentences.SDIST


def check(results, picture, printed, seeds=2):
    """What every comparison leaves behind."""
    for result in results:
        assert result.accuracies.shape == (seeds,)
        assert f"{result.accuracies.mean():.3f} ± {result.accuracies.std(ddof=1):.3f}" in printed
        assert printed.count(f"{result.name}, seed ") == seeds
        if result.baseline is not None:
            assert f"{result.name!r}" in printed.partition("seed by seed")[2]
    assert picture.read_bytes().startswith(b"\x89PNG")


def small_network(include_top, input_shape, weights="imagenet"):
    """In the place of EfficientNet-Lite0, whose tracing alone takes minutes here."""
    assert not include_top
    inputs = keras.Input(input_shape)
    x = keras.layers.Conv2D(8, 3, strides=2, name="stem_conv", use_bias=False)(inputs)
    x = keras.layers.BatchNormalization(name="stem_bn")(x)
    model = keras.Model(inputs, keras.layers.Conv2D(8, 3, strides=2, name="top_conv")(x))
    if weights == "imagenet":
        model.get_layer("stem_conv").set_weights([np.full((3, 3, input_shape[-1], 8), 0.25)])
    return model


def small_encoder(weights):
    """In the place of MiniLM: a masked embedding and one layer."""
    inputs = keras.Input((None,), dtype="int32")
    x = keras.layers.Embedding(30_522, 4, mask_zero=True, name="tokens")(inputs)
    return keras.Model(inputs, keras.layers.Dense(4, name="dense")(x))


def shorten(example, makes_models, monkeypatch):
    """Steps run eagerly, since tracing takes most of a short training, and a stage is one epoch."""
    make, planned = getattr(example, makes_models), example.planned

    def untraced(*args, **options):
        model = make(*args, **options)
        model.run_eagerly = True
        return model

    def one_epoch_each(plan, options):
        plan = planned(plan, options)
        return ktf.UnfreezingPlan([dataclasses.replace(stage, epochs=1) for stage in plan.stages])

    monkeypatch.setattr(example, makes_models, untraced)
    monkeypatch.setattr(example, "planned", one_epoch_each)


def test_images_the_pretrained_network_sees_grey_as_it_saw_colours(monkeypatch):
    monkeypatch.setattr(image_classification, "efficientnet_lite0", small_network)
    colour = small_network(False, (16, 16, 3))
    model = image_classification.new_model(16, pretrained=True)
    # Three channels of 0.25 each, summed.
    np.testing.assert_allclose(model.backbone.model.get_layer("stem_conv").get_weights()[0], 0.75)
    assert colour.get_layer("stem_conv").get_weights()[0].shape[2] == 3
    scratch = image_classification.new_model(16, pretrained=False)
    assert {norm.momentum for norm in scratch.backbone.batch_norms} == {0.9}
    assert scratch.backbone.batch_norm == "train"


@pytest.mark.slow
def test_images_the_shortened_comparison_runs_prints_and_draws(
    monkeypatch, data_dir, tmp_path, capsys
):
    monkeypatch.setattr(image_classification, "efficientnet_lite0", small_network)
    shorten(image_classification, "new_model", monkeypatch)
    picture = tmp_path / "images.png"
    results = image_classification.main(
        [
            "--quick",
            "--processes=1",
            "--per-class=2",
            "--image-size=16",
            "--test-size=60",
            f"--data-dir={data_dir}",
            f"--output={picture}",
        ]
    )
    assert [result.name for result in results] == [
        "probe, then top blocks",
        "from scratch",
    ]
    check(results, picture, capsys.readouterr().out)


@pytest.mark.slow
@pytest.mark.skipif(not ARCHIVE.is_file(), reason="the sentences are not here: see the Makefile")
@pytest.mark.parametrize("model", text_classification.MODELS)
def test_texts_the_shortened_comparison_runs_prints_and_draws(
    model, monkeypatch, data_dir, tmp_path, capsys
):
    pytest.importorskip("tokenizers")
    monkeypatch.setattr(minilm, "minilm", small_encoder)
    table = np.random.default_rng(0).normal(size=(32_001, 4))
    monkeypatch.setattr(word_vectors, "word_vectors", lambda: table)
    monkeypatch.setattr(text_classification, "TOKENS", 3)
    shorten(text_classification, "_compiled", monkeypatch)
    wanted = [
        name
        for name in text_classification.CONTENDERS
        if name.startswith(model) and name != text_classification.PROBE
    ]
    picture = tmp_path / "texts.png"
    results = text_classification.main(
        [
            "--quick",
            "--processes=1",
            f"--models={model}",
            "--per-class=4",
            "--test-size=50",
            f"--data-dir={data_dir}",
            f"--output={picture}",
        ]
    )
    assert [result.name for result in results] == wanted
    check(results, picture, capsys.readouterr().out)


def test_texts_the_recurrent_network_keeps_its_word_vectors_at_first(monkeypatch):
    table = np.random.default_rng(0).normal(size=(50, 4))
    monkeypatch.setattr(word_vectors, "word_vectors", lambda: table)
    model = text_classification.rnn(pretrained=True)
    np.testing.assert_allclose(model.backbone.model.get_layer("vectors").get_weights()[0], table)
    assert model.layer_groups.names == ["vectors", "gru", "classification_head"]
    plan = text_classification.CONTENDERS["RNN, pretrained vectors"][3]
    shown = str(ktf.describe(model, plan))
    assert "gru and head  1-10    gru, classification_head" in shown
    other = text_classification.rnn(pretrained=False).backbone.model.get_layer("vectors")
    assert (other.get_weights()[0] != table).any()


@pytest.mark.slow
def test_speech_the_shortened_comparison_runs_and_says_that_its_voices_are_synthetic(
    monkeypatch, data_dir, tmp_path, capsys
):
    monkeypatch.setattr(voice_encoder, "_LAYERS", 1)
    monkeypatch.setattr(speech_classification, "SECONDS", 0.04)
    shorten(speech_classification, "new_model", monkeypatch)
    for name in ("linear probing", speech_classification.RANDOM):
        monkeypatch.delitem(speech_classification.PLANS, name)
    picture = tmp_path / "speech.png"
    results = speech_classification.main(
        [
            "--quick",
            "--processes=1",
            "--data=synthetic",
            "--per-class=2",
            f"--data-dir={data_dir}",
            f"--output={picture}",
        ]
    )
    printed = capsys.readouterr().out
    assert "Synthetic voices: these figures say nothing about speech." in printed
    check(results, picture, printed)


def test_speech_without_recordings_ends_with_what_to_do(monkeypatch, tmp_path):
    from examples.datasets import spoken_words

    monkeypatch.setattr(spoken_words, "INSTALLED", tmp_path / "nowhere")
    with pytest.raises(
        SystemExit, match=r"(?s)apt-get install tuxpaint-stamps-default.*--data synthetic"
    ):
        speech_classification.main([f"--data-dir={tmp_path}"])
