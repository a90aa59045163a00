"""Loading a weights file wholly or not at all, with an error that says what does not fit."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras

from keras_transfer.weights.sources import open_source


def load_wholly(model: keras.Model, filepath: Any, load: Callable[[], None]) -> None:
    """Runs `load`, and puts the weights back as they were if the file does not fit.

    Keras loads what fits and then raises that a layer "expected 2 variables, but received
    0", after a warning for each.

    Args:
        model: The model whose weights are loaded.
        filepath: The file, for the message.
        load: Loads it.

    Raises:
        ValueError: If the file was written by a model of another architecture.
    """
    before = model.get_weights()
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            load()
    except ValueError as error:
        layers = re.findall(r"<\w+ name=(.+?), built=", str(error).rpartition("List of ")[2])
        if not layers:
            raise
        model.set_weights(before)
        raise ValueError(_does_not_fit(model, Path(filepath), layers)) from error
    for warning in caught:
        warnings.warn(warning.message, stacklevel=3)


def _does_not_fit(model: keras.Model, path: Path, layers: list[str]) -> str:
    names = ", ".join(map(repr, layers[:3])) + (", ..." if len(layers) > 3 else "")
    counts = ""
    if path.name.endswith(".weights.h5"):
        held = sum(array.size for array in open_source(path).arrays.values())
        counts = f" The file holds {held:,} parameters, the model {model.count_params():,}."
    return (
        f"The weights file {path.name!r} does not fit {model.name!r}, so nothing was loaded: it "
        f"has no weights of the right shape for {len(layers)} of its layers ({names}).{counts} It "
        "was written by a model with another backbone or head, or by one that is no "
        "`TransferModel`. Build that one, or take over what fits: "
        f"keras_transfer.weights.transfer_weights({path.name!r}, model, on_mismatch='skip')."
    )
