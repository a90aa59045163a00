"""`AnimalSilhouettes`, a builder of TensorFlow Datasets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds

from examples.datasets import animal_silhouettes
from examples.datasets.builders._splits import examples_of, train_and_test


class AnimalSilhouettes(tfds.core.GeneratorBasedBuilder):
    """9,716 grey silhouettes of animals, 28x28 pixels, each once; 100 of each class to test on."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(28, 28, 1)),
                    "label": tfds.features.ClassLabel(names=list(animal_silhouettes.CLASS_NAMES)),
                }
            ),
            supervised_keys=("image", "label"),
            license="MIT",
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        images, labels = animal_silhouettes.load_unique()
        train, test = train_and_test(labels, test_size=1000)
        return {
            "train": self._generate_examples(images, labels, train),
            "test": self._generate_examples(images, labels, test),
        }

    def _generate_examples(self, images: Any, labels: Any, chosen: Any) -> Iterator[Any]:
        return examples_of(chosen, image=images[..., None], label=labels)
