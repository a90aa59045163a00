"""Mel spectrograms as the pretrained voice encoder takes them."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

SAMPLE_RATE = 16_000
WINDOW = 400  # 25 ms
STEP = 160  # 10 ms
CHANNELS = 40


@keras.saving.register_keras_serializable(package="keras_transfer_examples")
class MelSpectrogram(keras.layers.Layer):
    """Turns 16 kHz sound into 40 mel channels, 100 frames a second, as librosa does by default.

    Quiet clips are first made louder, to -30 dB of full scale, which the voice encoder's
    authors do too.

    Args:
        log: Whether to return the logarithm, centred and scaled. The pretrained encoder takes
            the power itself; a network that starts at random learns better from its logarithm.
        **kwargs: `name` and the other arguments of `keras.layers.Layer`.

    Call arguments:
        sound: `(batch, samples)`, float32 in [-1, 1].

    Returns:
        `(batch, 1 + samples // 160, 40)`, float32.
    """

    def __init__(self, log: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.log = log
        self.filters = mel_filters()

    def call(self, sound: Any) -> Any:
        loudness = ops.sqrt(ops.mean(ops.square(sound), axis=-1, keepdims=True) + 1e-12)
        sound = sound * ops.maximum(1.0, 10 ** (-30 / 20) / loudness)
        real, imaginary = ops.stft(sound, WINDOW, STEP, WINDOW, window="hann", center=True)
        power = ops.matmul(ops.square(real) + ops.square(imaginary), self.filters)
        return (ops.log(power + 1e-6) + 6) / 4 if self.log else power

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "log": self.log}


def mel_filters() -> NDArray[np.float32]:
    """Returns the triangular filters of Slaney's Auditory Toolbox, each of area 1: (201, 40)."""
    edges = _hertz(np.linspace(0, _mel(SAMPLE_RATE / 2), CHANNELS + 2))
    frequencies = np.linspace(0, SAMPLE_RATE / 2, WINDOW // 2 + 1)[:, None]
    rising = (frequencies - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - frequencies) / (edges[2:] - edges[1:-1])
    triangles = np.maximum(0, np.minimum(rising, falling))
    filters: NDArray[np.float32] = (triangles * 2 / (edges[2:] - edges[:-2])).astype("float32")
    return filters


# The scale is linear up to 1 kHz, which is 15 mel, and logarithmic above.
def _mel(hertz: float) -> float:
    return 15 + 27 * np.log(hertz / 1000) / np.log(6.4) if hertz > 1000 else 3 * hertz / 200


def _hertz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(mel > 15, 1000 * 6.4 ** ((mel - 15) / 27), 200 * mel / 3)
