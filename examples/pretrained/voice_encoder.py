"""The GE2E voice encoder (three LSTMs) in Keras, with its weights from an installed package.

Check it against the PyTorch original: `python examples/pretrained/voice_encoder.py`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import keras
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from examples._installed_file import InstalledFile
from examples.pretrained.mel_spectrogram import CHANNELS, MelSpectrogram
from examples.pretrained.torch_file import read_torch_file
from examples.pretrained.voice_encoder_reference import reference_mels, reference_outputs

WEIGHTS = InstalledFile(
    package="resemblyzer",
    version="0.1.4",
    path="resemblyzer/pretrained.pt",
    sha256="39373b86598fa3da9fcddee6142382efe09777e8d37dc9c0561f41f0070f134e",
)
_UNITS = 256
_LAYERS = 3


def voice_encoder(weights: str | None = "voices", mel: MelSpectrogram | None = None) -> keras.Model:
    """Builds the encoder that tells speakers apart: three LSTMs and a projection.

    Args:
        weights: `"voices"` loads the weights of an installed package, trained on English
            speech of some 8,000 speakers; `None` leaves them random.
        mel: A layer to begin with, so that the model takes sound: `MelSpectrogram()` gives what
            the weights were trained on. `None` for a model that takes spectrograms.

    Returns:
        A functional model from `(batch, samples)` or `(batch, frames, 40)` to `(batch, 256)`:
        numbers of at least 0 whose squares sum to 1.

    Raises:
        ImportError: If the package with the weights is not installed.
        ValueError: If its file is not the expected one, or `weights` is another word.

    Reference:
        - [Wan et al., 2018](https://arxiv.org/abs/1710.10467), GE2E
    """
    if weights not in ("voices", None):
        raise ValueError(f"`weights` must be 'voices' or None. Received: weights={weights!r}")
    inputs = keras.Input((None, CHANNELS) if mel is None else (None,))
    x = inputs if mel is None else mel(inputs)
    for number in range(_LAYERS):
        last = number == _LAYERS - 1
        x = keras.layers.LSTM(_UNITS, return_sequences=not last, name=f"lstm_{number + 1}")(x)
    x = keras.layers.Dense(_UNITS, activation="relu", name="projection")(x)
    x = keras.layers.UnitNormalization(name="embedding")(x)
    model = keras.Model(inputs, x, name="voice_encoder")
    if weights == "voices":
        load_weights(model, read_torch_file(WEIGHTS.locate())["model_state"])
    return model


def load_weights(model: keras.Model, state: dict[str, np.ndarray]) -> None:
    """Copies a PyTorch state dict into the model that `voice_encoder` built.

    Both order an LSTM's gates alike (input, forget, cell, output). PyTorch has its kernels
    transposed, and two biases that are added.

    Raises:
        ValueError: If a tensor is missing.
    """
    wanted = [
        f"lstm.{kind}_l{number}"
        for number in range(_LAYERS)
        for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    ]
    missing = [name for name in [*wanted, "linear.weight", "linear.bias"] if name not in state]
    if missing:
        raise ValueError(f"The weights of the voice encoder are incomplete. Missing: {missing}")
    for number in range(_LAYERS):
        kernel, recurrent, *biases = (
            np.asarray(state[name]) for name in wanted[4 * number : 4 * number + 4]
        )
        model.get_layer(f"lstm_{number + 1}").set_weights([kernel.T, recurrent.T, sum(biases)])
    model.get_layer("projection").set_weights(
        [np.asarray(state["linear.weight"]).T, np.asarray(state["linear.bias"])]
    )


def largest_difference() -> float:
    """Returns the largest difference to the PyTorch original on the reference spectrograms."""
    outputs = keras.ops.convert_to_numpy(voice_encoder()(reference_mels()))
    return float(np.abs(outputs - reference_outputs()["embeddings"]).max())


if __name__ == "__main__":
    print(f"Largest difference to the PyTorch original: {largest_difference():.1e}")
