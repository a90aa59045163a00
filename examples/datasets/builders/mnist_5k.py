"""`Mnist5k`, a builder of TensorFlow Datasets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds

from examples.datasets import mnist_5k
from examples.datasets.builders._splits import examples_of, train_and_test


class Mnist5k(tfds.core.GeneratorBasedBuilder):
    """5,000 MNIST digits, 28x28 pixels, 500 of each; 50 of each to test on."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(28, 28, 1)),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
            license="BSD-3-Clause (the package)",
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        images, labels = mnist_5k.load(seed=0)
        train, test = train_and_test(labels, test_size=500)
        return {
            "train": self._generate_examples(images, labels, train),
            "test": self._generate_examples(images, labels, test),
        }

    def _generate_examples(self, images: Any, labels: Any, chosen: Any) -> Iterator[Any]:
        return examples_of(chosen, image=images[..., None], label=labels)
