"""`SpokenWords` and `SyntheticVoices`, builders of TensorFlow Datasets."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from examples.datasets import spoken_words, synthetic_voices
from examples.pretrained.mel_spectrogram import SAMPLE_RATE

_SAMPLES = int(spoken_words.SECONDS * SAMPLE_RATE)


def _info(builder: Any, names: Sequence[str], licence: str) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
        builder=builder,
        description=builder.__doc__,
        features=tfds.features.FeaturesDict(
            {
                "sound": tfds.features.Tensor(
                    shape=(_SAMPLES,), dtype=np.int16, encoding=tfds.features.Encoding.BYTES
                ),
                "label": tfds.features.ClassLabel(names=list(names)),
            }
        ),
        supervised_keys=("sound", "label"),
        license=licence,
    )


def _examples(classes: Sequence[Sequence[Any]], clip: Callable[[Any], Any]) -> Iterator[Any]:
    for label, members in enumerate(classes):
        for number, member in enumerate(members):
            yield f"{label}-{number}", {"sound": clip(member), "label": label}


class SpokenWords(tfds.core.GeneratorBasedBuilder):
    """Spoken words of nine recording series, 1.6 s each: 100 to train on and 50 to test on."""

    VERSION = tfds.core.Version("1.0.0")
    _COUNTS = (100, 50)  # of each series, to train and to test on
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "The recordings are in Debian's package `tuxpaint-stamps-default` (161 MB): "
        "`apt-get install tuxpaint-stamps-default`. Elsewhere, unpack the package and put its "
        "folder `usr/share/tuxpaint/stamps` into the manual directory."
    )

    def _info(self) -> tfds.core.DatasetInfo:
        return _info(self, spoken_words.SERIES, "GPL-2+")

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        installed = spoken_words.INSTALLED
        folder = installed if installed.is_dir() else dl_manager.manual_dir / "stamps"
        files = spoken_words.recordings(folder).values()
        train, test = self._COUNTS
        return {
            "train": self._generate_examples([of[test : test + train] for of in files]),
            "test": self._generate_examples([of[:test] for of in files]),
        }

    def _generate_examples(self, classes: Any) -> Iterator[Any]:
        return _examples(classes, spoken_words.load_clip)


class SyntheticVoices(tfds.core.GeneratorBasedBuilder):
    """Computed vowels of nine made-up speakers: 10 clips of each to train on and 10 to test on."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        names = [f"voice_{number}" for number in range(synthetic_voices.NUM_VOICES)]
        return _info(self, names, "Apache-2.0")

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        voices = range(synthetic_voices.NUM_VOICES)
        return {
            "train": self._generate_examples([[(v, n) for n in range(10)] for v in voices]),
            "test": self._generate_examples([[(v, n) for n in range(10, 20)] for v in voices]),
        }

    def _generate_examples(self, classes: Any) -> Iterator[Any]:
        return _examples(classes, lambda clip: synthetic_voices.synthetic_clip(*clip))
