"""TensorFlow Datasets: find and prepare a builder, and say what to do where that fails."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from keras_transfer import _checks
from keras_transfer.data._folders import unknown_split


def require() -> Any:
    """Imports TensorFlow Datasets, or says which extra brings it."""
    try:
        import tensorflow_datasets
    except ImportError as error:
        raise ImportError(
            "Loading a data set by name or builder needs TensorFlow Datasets. Install it with "
            "`pip install 'keras-transfer[datasets]'` (or `pip install tensorflow-datasets`)."
        ) from error
    return tensorflow_datasets


def is_prepared_folder(folder: Path) -> bool:
    """Whether TensorFlow Datasets has written a data set right into `folder`."""
    return (folder / "dataset_info.json").is_file()


def builder_from_folder(folder: Path) -> Any:
    """Returns the builder of a data set that was prepared in `folder`."""
    return require().builder_from_directory(os.fspath(folder))


def find_builder(name_or_builder: Any, data_dir: str | None) -> Any:
    """Returns the builder for a name, a builder class or a builder object."""
    tfds = require()
    kinds = tfds.core.DatasetBuilder
    if isinstance(name_or_builder, type) and issubclass(name_or_builder, kinds):
        return name_or_builder(data_dir=data_dir)
    if isinstance(name_or_builder, kinds):
        if data_dir is not None:
            raise ValueError(
                "A builder object has its own folder already. Received: a builder and "
                f"data_dir={data_dir!r}. Give it to the builder: `MyBuilder(data_dir=...)`."
            )
        return name_or_builder
    if not isinstance(name_or_builder, str):
        raise TypeError(
            "`name_or_builder` must be the name of a data set, a builder, or a folder. "
            f"Received: {name_or_builder!r}"
        )
    try:
        return tfds.builder(name_or_builder, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError as error:
        known = tfds.list_builders(with_community_datasets=False)
        raise ValueError(
            f"TensorFlow Datasets knows no data set {name_or_builder!r}, and there is no such "
            f"folder.{_checks.did_you_mean(name_or_builder, known)} Your own builder's module "
            "must be imported first, or pass the builder itself."
        ) from error
    except (ValueError, AttributeError) as error:
        known = tfds.list_builders(with_community_datasets=False)
        near = "" if name_or_builder in known else _checks.did_you_mean(name_or_builder, known)
        raise ValueError(
            f"TensorFlow Datasets cannot make the builder {name_or_builder!r}.{near} It says: "
            f"{error}"
        ) from error


def prepare(builder: Any, *, download: bool) -> None:
    """Makes sure that the builder's data is on disk.

    Raises:
        FileNotFoundError: If it is not, and `download` is false.
        RuntimeError: If it could not be downloaded or prepared.
    """
    tfds = require()
    if isinstance(builder, tfds.folder_dataset.ImageFolder | tfds.folder_dataset.TranslateFolder):
        return
    if builder.is_prepared():
        return
    if not download:
        raise FileNotFoundError(
            f"The data set {builder.name!r} is not prepared in {os.fspath(builder.data_path)!r}. "
            f"Received: download=False. {_offline(builder)}"
        )
    try:
        builder.download_and_prepare()
    except Exception as error:
        # Anything can come out of a builder's own code, or of the network below it. A folder
        # that was cut short is not prepared: TFDS writes elsewhere and renames at the end.
        raise RuntimeError(
            f"The data set {builder.name!r} could not be downloaded and prepared: "
            f"{type(error).__name__}: {_short(error)} {_offline(builder)}"
        ) from error


def _offline(builder: Any) -> str:
    name = (
        builder.name
        if builder.builder_config is None
        else (f"{builder.name}/{builder.builder_config.name}")
    )
    # The builder's own words, whole: they may be the only hint where the files are to be had.
    by_hand = builder.MANUAL_DOWNLOAD_INSTRUCTIONS
    manual = "" if by_hand is None else f" It reads files that one fetches by hand: {by_hand} "
    return (
        "To prepare it offline: on a machine with a network run "
        f"`tfds build {name} --data_dir=DATA` (or this very call with data_dir='DATA'), copy the "
        f"folder DATA here, and pass data_dir='DATA'.{manual.rstrip()} Files that are fetched by "
        "hand belong in 'DATA/downloads/manual'. Images in folders, `class/image.jpg`, need no "
        "builder."
    )


def _short(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else f"{text[:300]}..."


def supervised_dataset(
    builder: Any, split: str, keys: Sequence[str] | None
) -> tuple[Any, Any, Any, int]:
    """Returns the split as (input, label) in a fixed order, both features, and its length."""
    tfds = require()
    input_key, label_key = _keys(builder, keys)
    # One file after the other: with several at once the order is only as fixed as their number.
    reading = tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False, skip_prefetch=True)
    try:
        dataset = builder.as_dataset(split=split, shuffle_files=False, read_config=reading)
        examples = _count(builder, split)
    except (ValueError, KeyError) as error:
        name = split.split("[")[0].split("+")[0]
        if name not in builder.info.splits:
            raise unknown_split(name, list(builder.info.splits)) from error
        raise ValueError(
            f"TensorFlow Datasets cannot read split={split!r}: {_short(error)}"
        ) from error
    pairs = dataset.map(lambda example: (_get(example, input_key), _get(example, label_key)))
    features = builder.info.features
    return pairs, _get(features, input_key), _get(features, label_key), examples


def _count(builder: Any, split: str) -> int:
    splits = builder.info.splits
    return int(sum(splits[part.strip()].num_examples for part in split.split("+")))


def _keys(builder: Any, keys: Sequence[str] | None) -> tuple[str, str]:
    keys = builder.info.supervised_keys if keys is None else keys
    known = sorted(builder.info.features) if hasattr(builder.info.features, "keys") else []
    if keys is None or len(keys) != 2 or not all(isinstance(key, str) for key in keys):
        listed = ", ".join(map(repr, known))
        raise ValueError(
            f"The data set {builder.name!r} does not say which feature is the input and which the "
            f"label. Received: supervised_keys={keys!r}. Choose two of {listed}: "
            "supervised_keys=('input', 'label')."
        )
    for key in keys:
        if key.split("/")[0] not in known:
            raise ValueError(
                f"The data set {builder.name!r} has no feature {key!r}, only "
                f"{', '.join(map(repr, known))}.{_checks.did_you_mean(key, known)}"
            )
    return keys[0], keys[1]


def _get(nested: Any, key: str) -> Any:
    for part in key.split("/"):
        nested = nested[part]
    return nested
