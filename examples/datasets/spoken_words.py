"""Spoken words of nine recording series, from Debian's `tuxpaint-stamps-default` (GPL-2+).

Each series has one language, speaker and microphone, so they cannot be told apart from each
other: the task is *which series*, and not which language.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from examples.pretrained.mel_spectrogram import SAMPLE_RATE

# By the codes of their languages; the nine with more than 300 recordings.
SERIES = ("be", "bg", "ca", "da", "el", "es", "fr", "ro", "ru")
INSTALLED = Path("/usr/share/tuxpaint/stamps")
SECONDS = 1.6
# A clip begins where it is first louder than its loudest tenth of a second by this factor.
_QUIET = 0.05


def recordings(folder: Path) -> dict[str, list[Path]]:
    """Finds the recordings of each series, each once, in an order that is the same everywhere.

    A few files are copies of others: one of them in the training set and one in the test set
    would make the task easier than it is.

    Args:
        folder: The package's `stamps` folder.

    Returns:
        The files of each series, in the order of the checksums of their contents.

    Raises:
        FileNotFoundError: If a series has no file there.
    """
    found: dict[str, dict[str, Path]] = {series: {} for series in SERIES}
    for file in sorted(Path(folder).rglob("*_desc_??.ogg")):
        series = file.stem[-2:]
        if series in found:
            found[series].setdefault(hashlib.sha256(file.read_bytes()).hexdigest(), file)
    empty = [series for series, files in found.items() if not files]
    if empty:
        raise FileNotFoundError(
            f"There are no recordings of the series {', '.join(empty)} in {str(folder)!r}. "
            "Expected the `stamps` folder of Debian's package `tuxpaint-stamps-default`, with "
            "files such as `animals/birds/cardinal_desc_fr.ogg`."
        )
    return {series: [files[key] for key in sorted(files)] for series, files in found.items()}


def load_clip(file: Path) -> NDArray[np.int16]:
    """Reads a recording as 1.6 seconds of 16 kHz mono sound from where speech begins.

    Raises:
        ImportError: If `soundfile` or SciPy is not installed.
    """
    import soundfile
    from scipy import signal

    sound, rate = soundfile.read(file, dtype="float32", always_2d=True)
    mono = sound.mean(axis=1)
    if rate != SAMPLE_RATE:
        divisor = np.gcd(rate, SAMPLE_RATE)
        mono = signal.resample_poly(mono, SAMPLE_RATE // divisor, rate // divisor)
    return as_clip(mono)


def as_clip(sound: NDArray[np.float32]) -> NDArray[np.int16]:
    """Cuts the silence before speech off, and cuts or pads the rest to 1.6 seconds."""
    step = SAMPLE_RATE // 100
    blocks = sound[: len(sound) // step * step].reshape(-1, step)
    loudness = np.sqrt(np.mean(blocks**2, axis=1))
    loud = np.flatnonzero(loudness > _QUIET * loudness.max(initial=0))
    start = step * int(loud[0]) if len(loud) else 0
    clip = np.zeros(int(SECONDS * SAMPLE_RATE), np.float32)
    spoken = sound[start : start + len(clip)]
    clip[: len(spoken)] = spoken
    return np.round(np.clip(clip, -1, 1) * 32767).astype(np.int16)
