import keras
import numpy as np
import pytest

import keras_transfer as ktf
from examples.pretrained.mel_spectrogram import MelSpectrogram, mel_filters
from examples.pretrained.torch_file import read_torch_file
from examples.pretrained.voice_encoder import (
    WEIGHTS,
    largest_difference,
    load_weights,
    voice_encoder,
)
from examples.pretrained.voice_encoder_reference import (
    reference_mels,
    reference_outputs,
    reference_sound,
)


def test_embeddings_agree_with_the_pytorch_original():
    assert largest_difference() < 1e-5
    # The control: other gates in the place of some move the outputs by far more.
    state = dict(read_torch_file(WEIGHTS.locate())["model_state"])
    gates = np.split(state["lstm.weight_hh_l2"], 4)
    state["lstm.weight_hh_l2"] = np.concatenate([gates[1], gates[0], *gates[2:]])
    model = voice_encoder(None)
    load_weights(model, state)
    difference = np.abs(np.asarray(model(reference_mels())) - reference_outputs()["embeddings"])
    assert difference.max() > 0.01


def test_spectrograms_agree_with_librosa():
    mels = np.asarray(MelSpectrogram()(reference_sound()))
    expected = reference_outputs()["mels"]
    assert mels.shape == expected.shape == (2, 51, 40)
    assert np.abs(mels - expected).max() < 1e-5 * expected.max()


def test_every_filter_has_an_area_of_one():
    # Triangles sampled every 40 Hz: the wide ones come close to it.
    areas = mel_filters().sum(axis=0) * 40
    np.testing.assert_allclose(areas[10:], 1, atol=0.05)


def test_the_encoder_on_sound_is_a_backbone_that_saves(tmp_path):
    model = ktf.TransferModel(
        voice_encoder(None, MelSpectrogram(log=True)),
        ktf.layers.ClassificationHead(num_classes=3),
        groups="blocks",
    )
    assert [g.name for g in model.layer_groups][:3] == ["lstm_1", "lstm_2", "lstm_3"]
    outputs = model(reference_sound())
    assert outputs.shape == (2, 3)
    model.save(tmp_path / "voice.keras")
    loaded = keras.saving.load_model(tmp_path / "voice.keras")
    np.testing.assert_allclose(loaded(reference_sound()), outputs, atol=1e-6)


def test_missing_tensors_and_other_weights_are_named():
    state = dict(read_torch_file(WEIGHTS.locate())["model_state"])
    del state["lstm.bias_hh_l1"]
    model = voice_encoder(None)
    with pytest.raises(ValueError, match=r"incomplete\. Missing: \['lstm\.bias_hh_l1'\]"):
        load_weights(model, state)
    with pytest.raises(
        ValueError, match=r"must be 'voices' or None\. Received: weights='imagenet'"
    ):
        voice_encoder("imagenet")
