"""Loading a weights file wholly or not at all, with an error that says what does not fit."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import keras

from keras_transfer._keras_internals import flatten_layers
from keras_transfer.weights._hdf5_heaps import check_names
from keras_transfer.weights.naming import named_weights
from keras_transfer.weights.sources import damaged, open_source


def load_wholly(
    model: keras.Model, filepath: Any, load: Callable[[], None], *, skip_mismatch: bool = False
) -> None:
    """Runs `load`, and puts the weights back as they were if the file does not fit.

    Keras loads what fits and then raises that a layer "expected 2 variables, but received
    0", after a warning for each. Of layers that the file holds and the model does not, it
    says nothing.

    Args:
        model: The model whose weights are loaded.
        filepath: The file, for the message.
        load: Loads it.
        skip_mismatch: Whether layers of the file that the model does not have are let pass.

    Raises:
        ValueError: If the file was written by a model of another architecture.
    """
    if not skip_mismatch:
        _check_no_surplus(model, Path(filepath))
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


def _check_no_surplus(model: keras.Model, path: Path) -> None:
    if not path.name.endswith(".weights.h5") or not path.is_file() or not model.built:
        return
    held = _layers_in_file(path, {metric.name for metric in model.metrics})
    weights = named_weights(model)
    surplus = sum(held.values()) - len(weights)
    if surplus <= 0:
        return
    known = {layer.name for layer in flatten_layers(model)}
    layers = [name for name in held if name not in known]
    # Layers that Keras named by itself have other names in each model: then no name says which.
    tells = sum(held[name] for name in layers) == surplus
    names = ", ".join(map(repr, layers[:5])) + (", ..." if len(layers) > 5 else "")
    raise ValueError(
        f"The weights file {path.name!r} does not fit {model.name!r}, so nothing was loaded: it "
        f"holds {surplus} more arrays than the model has"
        + (f" (of the layers {names})" if tells else "")
        + ". It was written by a model with more layers. Build that one, or take over what fits: "
        f"keras_transfer.weights.transfer_weights({path.name!r}, model, on_mismatch='skip')."
    )


def _layers_in_file(path: Path, left_out: set[str]) -> dict[str, int]:
    """Returns how many weights a file holds of each layer, by the layer's name."""
    counts: dict[str, int] = {}

    def visit(name: str, item: Any) -> None:
        folder, _, _ = name.rpartition("/")
        if not isinstance(item, h5py.Dataset) or not f"/{folder}".endswith("/vars"):
            return
        # Neither the optimizer's state nor that of random generators is a weight.
        if name.startswith("optimizer/") or "seed_generator" in name:
            return
        layer = str(item.parent.attrs.get("name", folder.rpartition("/")[0]))
        if layer not in left_out:
            counts[layer] = counts.get(layer, 0) + 1

    try:
        check_names(path)
    except ValueError as error:
        raise ValueError(damaged(path, error)) from error
    try:
        with h5py.File(path, "r") as file:
            file.visititems(visit)
    except OSError:
        return {}  # no HDF5 file: Keras says so
    return counts


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
