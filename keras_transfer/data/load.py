"""Load data by name, builder or folder, ready for `fit`, with the facts about the task."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from keras_transfer import _checks
from keras_transfer.data import _folders, _tfds
from keras_transfer.data.task_spec import TaskSpec

# Decoded data up to this size is kept in memory after the first epoch by `cache="auto"`.
_CACHE_BYTES = 1 << 30
_SHUFFLE_EXAMPLES = 10_000


def load(
    name_or_builder: Any,
    split: str | Sequence[str] = "train",
    image_size: int | tuple[int, int] | None = None,
    batch_size: int | None = 32,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    supervised_keys: tuple[str, str] | None = None,
    shuffle: bool = False,
    seed: int = 0,
    cache: bool | str = "auto",
    download: bool = True,
) -> tuple[Any, TaskSpec]:
    """Loads a labelled data set, from TensorFlow Datasets or folders of images.

    Reading is deterministic: the same examples in the same order every time, on any
    machine, so that `few_shot`, `subset`, feature caches and resumed runs see the same
    data. Images come as float32 in [0, 255]; scaling belongs to the backbone.

    Args:
        name_or_builder: A name that TensorFlow Datasets knows (`"mnist"`,
            `"glue/cola"`), a builder or builder class, or a folder: one that
            TensorFlow Datasets prepared, or images as `split/class/image.jpg` (the
            layout of `tfds.ImageFolder`) or `class/image.jpg` (that of
            `keras.utils.image_dataset_from_directory`; its only split is `"train"`).
            Folders of images need no TensorFlow Datasets.
        split: A split, or a part of one as TensorFlow Datasets writes it
            (`"train[:80%]"`); or a list of them.
        image_size: Height and width to resize images to, in pixels (bilinear with
            antialiasing; the aspect ratio is not kept); one number for both. `None`
            leaves images as they are.
        batch_size: Examples per batch; the last may be smaller. `None` for single
            examples.
        data_dir: Where TensorFlow Datasets keeps prepared data. `None` for its
            default.
        supervised_keys: Names of the input and the label feature, where the builder
            does not say; `"outer/inner"` for nested ones.
        shuffle: Whether the examples are shuffled anew in each epoch, by `seed` and
            TensorFlow's global seed, through a buffer of 10,000 examples. Choose
            parts (`few_shot`, `subset`) before you shuffle.
        seed: Seed of the shuffle.
        cache: Whether decoded examples are kept after the first epoch: `True` in
            memory, a path as a file, `"auto"` in memory where they take at most 1 GiB.
        download: Whether data that is not on disk may be downloaded and prepared.

    Returns:
        The data set of (inputs, labels), a list of them for a list of splits, and the
        `TaskSpec`.

    Raises:
        ValueError: If there is no such data set, split, feature or folder layout, or
            images of different sizes would be batched.
        ImportError: If TensorFlow Datasets is needed and not installed (the
            `datasets` extra brings it).
        FileNotFoundError: If the data is not on disk and `download` is false.
        RuntimeError: If it could not be downloaded. The message says how to prepare
            the data offline.

    Example:

    >>> import pathlib, tempfile
    >>> import numpy as np
    >>> import tensorflow as tf
    >>> from keras_transfer.data import load
    >>> root = pathlib.Path(tempfile.mkdtemp())
    >>> for name in ("cat", "dog"):
    ...     (root / name).mkdir()
    ...     for i in range(5):
    ...         image = np.full((9, 12, 3), 50 * i, dtype=np.uint8)
    ...         tf.io.write_file(str(root / name / f"{i}.png"), tf.io.encode_png(image))
    >>> (train, val), spec = load(root, ["train[:80%]", "train[80%:]"], image_size=8)
    >>> spec.class_names, spec.input_shape, spec.loss
    (('cat', 'dog'), (8, 8, 3), 'sparse_categorical_crossentropy')
    >>> spec.examples
    {'train[:80%]': 8, 'train[80%:]': 2}
    """
    size = _checked_size(image_size)
    if batch_size is not None:
        batch_size = _checks.integer(batch_size, "batch_size", minimum=1)
    seed = _checks.integer(seed, "seed")
    if not isinstance(cache, bool | str):
        raise TypeError(f"`cache` must be True, False, 'auto' or a path. Received: cache={cache!r}")
    splits = [split] if isinstance(split, str) else split
    if (
        not isinstance(splits, list | tuple)
        or not splits
        or not all(isinstance(each, str) for each in splits)
    ):
        raise TypeError(f"`split` must be a name or a list of names. Received: split={split!r}")
    source = _open(name_or_builder, None if data_dir is None else os.fspath(data_dir), download)
    loaded, specs = [], []
    for each in splits:
        dataset, spec = source.read(each, supervised_keys)
        dataset = _as_inputs(dataset, size, batch_size)
        dataset = _cached(dataset, cache, spec.examples[each], each)
        if shuffle:
            buffer = min(spec.examples[each], _SHUFFLE_EXAMPLES)
            dataset = dataset.shuffle(buffer, seed=seed, reshuffle_each_iteration=True)
        if batch_size is not None:
            dataset = dataset.batch(batch_size, num_parallel_calls=tf.data.AUTOTUNE)
        loaded.append(_finished(dataset))
        specs.append(spec)
    spec = _merged(specs, loaded[0], batched=batch_size is not None)
    return (loaded[0] if isinstance(split, str) else loaded), spec


def _open(name_or_builder: Any, data_dir: str | None, download: bool) -> _Folders | _Builder:
    if isinstance(name_or_builder, str | os.PathLike):
        folder = Path(os.path.expanduser(name_or_builder))
        if folder.is_dir():
            if _tfds.is_prepared_folder(folder):
                return _Builder(_tfds.builder_from_folder(folder))
            return _Folders(_folders.ImageFolders(folder))
        if not isinstance(name_or_builder, str) or folder.is_absolute():
            raise ValueError(f"There is no folder {os.fspath(folder)!r}.")
    builder = _tfds.find_builder(name_or_builder, data_dir)
    _tfds.prepare(builder, download=download)
    return _Builder(builder)


class _Folders:
    """Reads folders of images."""

    def __init__(self, folders: _folders.ImageFolders) -> None:
        self.folders = folders

    def read(self, split: str, keys: Any) -> tuple[tf.data.Dataset, TaskSpec]:
        if keys is not None:
            raise ValueError(
                "`supervised_keys` is for data sets of TensorFlow Datasets; a folder of images has "
                f"images and labels only. Received: supervised_keys={keys!r}"
            )
        dataset, examples = self.folders.dataset(split)
        spec = _classification(self.folders.name, self.folders.class_names, split, examples)
        return dataset, spec


class _Builder:
    """Reads a builder of TensorFlow Datasets."""

    def __init__(self, builder: Any) -> None:
        self.builder = builder

    def read(self, split: str, keys: Any) -> tuple[tf.data.Dataset, TaskSpec]:
        dataset, _, label, examples = _tfds.supervised_dataset(self.builder, split, keys)
        name = self.builder.info.full_name
        if getattr(label, "num_classes", None):  # A ClassLabel.
            return dataset, _classification(name, label.names, split, examples)
        if dataset.element_spec[1].dtype.is_floating:
            return dataset, TaskSpec(
                name,
                (),
                loss="mean_squared_error",
                metrics=("mean_absolute_error",),
                examples={split: examples},
            )
        return dataset, TaskSpec(name, (), examples={split: examples})


def _classification(name: str, class_names: Sequence[str], split: str, examples: int) -> TaskSpec:
    return TaskSpec(
        name,
        (),
        num_classes=len(class_names),
        class_names=tuple(class_names),
        loss="sparse_categorical_crossentropy",
        metrics=("accuracy",),
        examples={split: examples},
    )


def _merged(specs: Sequence[TaskSpec], dataset: tf.data.Dataset, *, batched: bool) -> TaskSpec:
    inputs = dataset.element_spec[0]
    if not isinstance(inputs, tf.TensorSpec):
        shape, dtype = (), "structure"
    else:
        shape, dtype = tuple(inputs.shape)[1 if batched else 0 :], inputs.dtype.name
    examples = {split: count for spec in specs for split, count in spec.examples.items()}
    config = {**specs[0].get_config(), "input_shape": shape, "input_dtype": dtype}
    return TaskSpec.from_config({**config, "examples": examples})


def _checked_size(image_size: Any) -> tuple[int, int] | None:
    if image_size is None:
        return None
    sides = image_size if isinstance(image_size, tuple | list) else (image_size, image_size)
    if len(sides) != 2:
        raise ValueError(
            "`image_size` must be one number, or height and width. "
            f"Received: image_size={image_size!r}"
        )
    height, width = (_checks.integer(side, "image_size", minimum=1) for side in sides)
    return height, width


def _as_inputs(
    dataset: tf.data.Dataset, size: tuple[int, int] | None, batch_size: int | None
) -> tf.data.Dataset:
    """Resizes images and makes them float32; refuses what cannot be batched."""
    inputs = dataset.element_spec[0]
    is_image = (
        isinstance(inputs, tf.TensorSpec)
        and inputs.shape.rank == 3
        and (inputs.dtype in (tf.uint8, tf.uint16) or inputs.dtype.is_floating)
    )
    if size is not None:
        if not is_image:
            raise ValueError(
                "`image_size` is for images of shape (height, width, channels). "
                f"Received: image_size={size}, inputs of {inputs}. Leave it out."
            )
        # Antialiased, so that shrinking a large photo does not pick single pixels of it.
        return dataset.map(
            lambda image, label: (
                tf.ensure_shape(
                    tf.image.resize(image, size, antialias=True), [*size, inputs.shape[-1]]
                ),
                label,
            ),
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=True,
        )
    shapes = [part.shape for part in tf.nest.flatten(inputs)]
    if batch_size is not None and not all(shape.is_fully_defined() for shape in shapes):
        remedy = (
            "Give `image_size`."
            if is_image
            else "Pass batch_size=None, and pad or crop before `.batch`."
        )
        raise ValueError(
            f"Examples differ in shape, so they cannot be batched. Received: inputs of shape "
            f"{shapes[0] if len(shapes) == 1 else shapes}, batch_size={batch_size}. {remedy}"
        )
    if is_image:
        return dataset.map(
            lambda image, label: (tf.cast(image, tf.float32), label),
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=True,
        )
    return dataset


def _cached(dataset: tf.data.Dataset, cache: bool | str, examples: int, split: str) -> Any:
    if cache is True:
        return dataset.cache()
    if cache is False:
        return dataset
    if cache != "auto":
        safe = "".join(letter if letter.isalnum() else "_" for letter in split)
        return dataset.cache(f"{cache}-{safe}")
    parts = tf.nest.flatten(dataset.element_spec)
    if not all(isinstance(p, tf.TensorSpec) and p.shape.is_fully_defined() for p in parts):
        return dataset
    if any(part.dtype == tf.string for part in parts):  # Text: no known size, but cheap to read.
        return dataset
    one = sum(int(np.prod(part.shape)) * part.dtype.size for part in parts)
    return dataset.cache() if one * examples <= _CACHE_BYTES else dataset


def _finished(dataset: tf.data.Dataset) -> tf.data.Dataset:
    options = tf.data.Options()
    options.deterministic = True
    return dataset.with_options(options).prefetch(tf.data.AUTOTUNE)
