"""Tiny builders of TensorFlow Datasets and image folders, made on the spot."""

from __future__ import annotations

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds


def picture(label, index, size=(6, 5)):
    """An image whose mean says its class."""
    rng = np.random.default_rng([label, index])
    return (60 * label + rng.integers(0, 30, size=(*size, 3))).astype(np.uint8)


class TinyImages(tfds.core.GeneratorBasedBuilder):
    """20 training and 6 test images of three classes, all of one size."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(6, 5, 3)),
                    "label": tfds.features.ClassLabel(names=["cat", "dog", "yak"]),
                    "brightness": np.float32,
                    "count": np.int64,
                }
            ),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager):
        return {"train": self._examples(0, 20), "test": self._examples(20, 26)}

    def _generate_examples(self):
        raise NotImplementedError

    def _examples(self, first, last):
        for index in range(first, last):
            image = picture(index % 3, index)
            yield (
                index,
                {
                    "image": image,
                    "label": index % 3,
                    "brightness": image.mean().astype(np.float32),
                    "count": index,
                },
            )


class NoKeys(tfds.core.GeneratorBasedBuilder):
    """Sequences of different lengths, without supervised keys."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    "sound": tfds.features.Tensor(shape=(None,), dtype=np.float32),
                    "word": tfds.features.ClassLabel(names=["no", "yes"]),
                }
            ),
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for index in range(6):
            yield index, {"sound": np.full(index + 1, index, np.float32), "word": index % 2}


class NeedsNetwork(tfds.core.GeneratorBasedBuilder):
    """Downloads from an address that no network has."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict({"label": np.int64})
        )

    def _split_generators(self, dl_manager):
        raise ConnectionError("no route to data.invalid")

    def _generate_examples(self):
        raise NotImplementedError


class NeedsFiles(NeedsNetwork):
    """Reads files that one fetches by hand."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = "Fetch words.zip from the authors."

    def _split_generators(self, dl_manager):
        return {"train": dl_manager.manual_dir.iterdir()}


def image_folder(root, per_class=5, splits=None, classes=("cat", "dog"), size=None):
    """Writes images as `class/image.png`, or `split/class/image.png`."""
    for split in splits or [""]:
        for label, name in enumerate(classes):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(per_class):
                shape = size or (6 + index, 5)
                content = tf.io.encode_png(picture(label, index, shape))
                tf.io.write_file(str(folder / f"{index}.png"), content)
    return root
