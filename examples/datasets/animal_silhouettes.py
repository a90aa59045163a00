"""Animal silhouettes: 9,716 grey images of 28x28 pixels in 10 classes (`animal-mnist`, MIT)."""

from __future__ import annotations

import dataclasses
import gzip
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from examples._array_pickle import load_array
from examples._installed_file import InstalledFile
from examples.datasets._split import stratified_split

CLASS_NAMES = (
    "bear",
    "bird",
    "cat",
    "cow",
    "dog",
    "elephant",
    "giraffe",
    "horse",
    "sheep",
    "zebra",
)
IMAGES = InstalledFile(
    package="animal-mnist",
    version="0.4",
    path="animal_mnist/data/Animal_MNIST/animal_data_version_3.gz",
    sha256="68a30346781a0984f839463a4615d2decb899d1ce65091bb92586311754a34ce",
)
LABELS = InstalledFile(
    package="animal-mnist",
    version="0.4",
    path="animal_mnist/data/Animal_MNIST/animal_label_version_3.gz",
    sha256="dec8dba7c469830989fbab46825021a08a38470753a512f27ada847eced97b57",
)


@dataclasses.dataclass(frozen=True)
class Examples:
    """Images and their classes.

    Attributes:
        images: `(examples, height, width, channels)`, float32 in [0, 255].
        labels: Class of each image, an index into `CLASS_NAMES`.
    """

    images: NDArray[np.float32]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)


def load_unique() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Loads all images, each once.

    Of the set's 10,000 images 284 are copies of others. A copy in the training set of an
    image in the test set would be counted as recognised, so copies go before any split.

    Returns:
        Images, `(9716, 28, 28)` in [0, 255], and their classes.

    Raises:
        ImportError: If the package with the data is not installed.
        ValueError: If its files are not the expected ones.
    """
    with gzip.open(IMAGES.locate()) as file:
        images = load_array(file)
    with gzip.open(LABELS.locate()) as file:
        labels = load_array(file)
    _, first = np.unique(images.reshape(len(images), -1), axis=0, return_index=True)
    first.sort()
    return images[first], labels[first].astype(np.int64)


def load(
    train_size: int = 200,
    validation_size: int = 200,
    test_size: int = 1000,
    image_size: int = 96,
    seed: int = 0,
) -> tuple[Examples, Examples, Examples]:
    """Loads disjoint training, validation and test sets of RGB images.

    Each has the ten classes in equal numbers. The test set does not depend on how many
    examples the others have.

    Args:
        train_size: Number of training images.
        validation_size: Number of validation images.
        test_size: Number of test images.
        image_size: Height and width to which the images are enlarged, in pixels.
        seed: The same seed gives the same sets.

    Returns:
        Training, validation and test set.

    Raises:
        ImportError: If the package with the data is not installed.
        ValueError: If there are not as many images.
    """
    images, labels = load_unique()
    test, train, validation = stratified_split(
        labels, (test_size, train_size, validation_size), seed
    )
    return (
        Examples(_enlarge(images[train], image_size), labels[train]),
        Examples(_enlarge(images[validation], image_size), labels[validation]),
        Examples(_enlarge(images[test], image_size), labels[test]),
    )


def _enlarge(images: NDArray[Any], image_size: int) -> NDArray[np.float32]:
    grey = images[..., None].astype("float32")
    resized = keras.ops.image.resize(grey, (image_size, image_size), interpolation="bilinear")
    enlarged: NDArray[np.float32] = keras.ops.convert_to_numpy(resized).repeat(3, axis=-1)
    return enlarged
