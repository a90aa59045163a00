"""`RatedSentences`, a builder of TensorFlow Datasets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from examples.datasets import rated_sentences
from examples.datasets.builders._splits import examples_of, train_and_test


class RatedSentences(tfds.core.GeneratorBasedBuilder):
    """Sentences that people rated as positive or negative; 500 of each to test on.

    One configuration for each source: `amazon`, `movies`, `nyt` and `tweets`.
    """

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [  # noqa: RUF012 - TensorFlow Datasets reads a list of the class
        tfds.core.BuilderConfig(name=source, description=file)
        for source, file in rated_sentences.SOURCES.items()
    ]
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        f"Get the source archive: {rated_sentences.COMMAND}, and put it into the manual directory "
        f"or into {str(rated_sentences.FOLDER)!r}."
    )

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "text": tfds.features.Text(),
                    "label": tfds.features.ClassLabel(names=["negative", "positive"]),
                    "rating": np.float32,
                }
            ),
            supervised_keys=("text", "label"),
            license="MIT",
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        archive = rated_sentences.FOLDER / rated_sentences.SDIST
        if not archive.is_file():
            archive = Path(dl_manager.manual_dir) / rated_sentences.SDIST
        texts, ratings = rated_sentences.load(self.builder_config.name, archive)
        decided = np.flatnonzero(ratings)
        texts, ratings = [texts[index] for index in decided], ratings[decided]
        labels = (ratings > 0).astype(np.int64)
        train, test = train_and_test(labels, test_size=1000)
        return {
            "train": self._generate_examples(texts, labels, ratings, train),
            "test": self._generate_examples(texts, labels, ratings, test),
        }

    def _generate_examples(
        self, texts: Any, labels: Any, ratings: Any, chosen: Any
    ) -> Iterator[Any]:
        return examples_of(chosen, text=texts, label=labels, rating=ratings)
