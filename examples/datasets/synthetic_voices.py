"""Synthetic voices: vowels of nine made-up speakers, computed on the spot. No real speech.

They stand in for real recordings where those are not installed: in tests, and to try the
speech example out. Results on them say nothing about speech.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from examples.datasets.spoken_words import SECONDS, as_clip
from examples.pretrained.mel_spectrogram import SAMPLE_RATE

NUM_VOICES = 9
# First two formants of a, e, i, o, u, in hertz.
_VOWELS = ((750, 1250), (500, 1900), (300, 2300), (450, 850), (320, 800))


def synthetic_clip(voice: int, number: int) -> NDArray[np.int16]:
    """Computes one clip of three to five vowels.

    Args:
        voice: Which speaker, 0 to 8: pitch and length of the vocal tract.
        number: Which clip; the same voice and number give the same clip.

    Returns:
        1.6 seconds of 16 kHz sound.
    """
    speaker = np.random.default_rng(voice)
    pitch, tract = speaker.uniform(90, 240), speaker.uniform(0.8, 1.25)
    generator = np.random.default_rng([voice, number])
    vowels = [_vowel(generator, pitch, tract) for _ in range(generator.integers(3, 6))]
    sound = np.concatenate(vowels)
    noise = generator.normal(0, 0.003, int(SECONDS * SAMPLE_RATE))
    noise[: len(sound)] += sound[: len(noise)]
    return as_clip(noise.astype("float32"))


def _vowel(generator: np.random.Generator, pitch: float, tract: float) -> NDArray[np.float64]:
    time = np.arange(int(generator.uniform(0.15, 0.3) * SAMPLE_RATE)) / SAMPLE_RATE
    first, second = _VOWELS[generator.integers(len(_VOWELS))]
    own_pitch = pitch * generator.uniform(0.85, 1.15)
    sound = np.zeros_like(time)
    for harmonic in range(1, 30):
        frequency = harmonic * own_pitch
        resonances = (1 / (1 + ((frequency - f / tract) / 120) ** 2) for f in (first, second))
        gain = sum(resonances) / harmonic
        sound += gain * np.sin(2 * np.pi * frequency * time + generator.uniform(0, 6))
    fade = np.minimum(1, np.minimum(time, time[::-1]) / 0.02)
    return 0.2 * fade * sound
