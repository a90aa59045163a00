"""Reference outputs of the voice encoder, from the PyTorch original and librosa; no Keras in here.

To make them anew, in an environment of its own (not the one of this project):

    pip install numpy torch==2.13.0 librosa==0.11.0
    pip install --no-deps resemblyzer==0.1.4
    python examples/pretrained/voice_encoder_reference.py
"""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

FILE = Path(__file__).with_name("voice_encoder_reference.npz")


def reference_sound() -> NDArray[np.float32]:
    """Returns two clips of 0.5 s at 16 kHz that every machine computes alike: a siren and steps."""
    time = np.arange(8000) / 16_000
    siren = 0.3 * np.sin(2 * np.pi * (200 + 3000 * time) * time)
    steps = 0.1 * np.sign(np.sin(2 * np.pi * 110 * time)) * (np.floor(8 * time) % 2)
    return np.stack([siren, steps]).astype("float32")


def reference_mels() -> NDArray[np.float32]:
    """Returns the spectrograms of three clips, (3, 60, 40), of numbers of a spectrogram's size."""
    frames, channels = np.mgrid[:60, :40]
    waves = [np.sin(frames / a + channels / b) ** 2 / (1 + channels) for a, b in ((5, 3), (9, 2))]
    return np.stack([*waves, waves[0][::-1] * 20]).astype("float32")


def reference_outputs() -> dict[str, NDArray[np.float32]]:
    """Returns `embeddings`, (3, 256), and `mels`, (2, 51, 40), of the reference inputs."""
    with np.load(FILE, allow_pickle=False) as file:
        return dict(file)


def _original_embeddings() -> NDArray[np.float32]:
    import torch

    # The package's own module imports more than its network needs, so the network stands here
    # as `resemblyzer/voice_encoder.py` has it.
    class VoiceEncoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = torch.nn.LSTM(40, 256, 3, batch_first=True)
            self.linear = torch.nn.Linear(256, 256)

        def forward(self, mels: torch.Tensor) -> torch.Tensor:
            _, (hidden, _) = self.lstm(mels)
            raw = torch.relu(self.linear(hidden[-1]))
            return raw / torch.norm(raw, dim=1, keepdim=True)

    file = importlib.metadata.distribution("resemblyzer").locate_file("resemblyzer/pretrained.pt")
    model = VoiceEncoder()
    saved = torch.load(file, map_location="cpu", weights_only=True)
    model.load_state_dict(saved["model_state"], strict=False)
    with torch.no_grad():
        return model.eval()(torch.from_numpy(reference_mels())).numpy()


def _original_mels() -> NDArray[np.float32]:
    import librosa

    sounds = []
    for sound in reference_sound():
        # As the package's `normalize_volume(wav, -30, increase_only=True)`.
        change = -30 - 20 * np.log10(np.sqrt(np.mean(sound**2)))
        louder = sound * 10 ** (max(change, 0) / 20)
        # librosa mirrored the ends by default when the weights were made.
        spectrogram = librosa.feature.melspectrogram(
            y=louder, sr=16_000, n_fft=400, hop_length=160, n_mels=40, pad_mode="reflect"
        )
        sounds.append(spectrogram.T)
    return np.stack(sounds).astype("float32")


if __name__ == "__main__":
    outputs = {"embeddings": _original_embeddings(), "mels": _original_mels()}
    np.savez(FILE, **outputs)
    print({name: (array.shape, float(array.max())) for name, array in outputs.items()})
