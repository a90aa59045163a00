"""Weights by name, from a model or from a file that is not a pickle."""

from __future__ import annotations

import dataclasses
import io
import lzma
import os
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
from numpy.typing import NDArray

from keras_transfer import _checks
from keras_transfer.weights._hdf5_heaps import check_heaps, check_names
from keras_transfer.weights.naming import NamedWeight, join, named_weights

Array = NDArray[Any]

# What `torch.save`, TensorFlow 1 and others write: files that run code when they are opened.
_PICKLED = (".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt", ".joblib", ".dill")
# What readers raise on bytes that are not what they expect: sizes beyond any memory, other types.
_DAMAGED = (
    *(OSError, EOFError, MemoryError, LookupError, RuntimeError, TypeError, ValueError),
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError),
)
_READABLE = "'.keras', '.weights.h5' or '.safetensors'"


@dataclasses.dataclass(frozen=True)
class Source:
    """Arrays to copy from, by path.

    Args:
        label: What the source is called in messages and reports.
        arrays: Value of each weight by path.
        numbered: Whether paths end in a weight's position in its layer instead of its
            name, as in Keras's weights files.
        repeated: Paths that more than one weight has; they are not in `arrays`.
    """

    label: str
    arrays: dict[str, Array]
    numbered: bool = False
    repeated: frozenset[str] = frozenset()

    def key_of(self, weight: NamedWeight) -> str:
        """Returns the path under which this source would hold a weight like the target's."""
        return weight.numbered_path if self.numbered else weight.path

    def find(self, path: str, index: int) -> str | None:
        """Returns the source's own path for `path`, whose last part may stand for an index."""
        if path in self.arrays:
            return path
        numbered = join(path.rpartition("/")[0], str(index))
        return numbered if self.numbered and numbered in self.arrays else None


def open_source(source: Any) -> Source:
    """Reads all weights of a model or file.

    Raises:
        TypeError: If `source` is neither a Keras model nor a path.
        ValueError: If the file is damaged, or of a kind that is not read.
        FileNotFoundError: If there is no such file.
        ImportError: If a `.safetensors` file is given without the `safetensors` library.
    """
    if isinstance(source, keras.layers.Layer):
        pairs = [(weight.path, weight.variable.numpy()) for weight in named_weights(source)]
        return _collect(f"model {source.name!r}", pairs, numbered=False)
    if not isinstance(source, str | os.PathLike):
        raise TypeError(
            f"`source` must be a Keras model or the path of a {_READABLE} file. "
            f"Received: {source!r}"
        )
    path = Path(source)
    _check_kind(path)
    _check_exists(path)
    label = f"file {path.name!r}"
    try:
        if path.name.lower().endswith(".safetensors"):
            return _collect(label, list(_read_safetensors(path)), numbered=False)
        return _collect(label, list(_read_keras(path)), numbered=True)
    except _DAMAGED as error:
        raise ValueError(damaged(path, error)) from error


def damaged(path: Path, error: Exception) -> str:
    """Returns what to say of a weights file on which a reader raised an error."""
    return (
        f"The weights file cannot be read; it is damaged, cut short or of another kind. "
        f"Received: {str(path)!r} ({path.stat().st_size} bytes). "
        f"Copy or save it anew. The reader said: {str(error) or type(error).__name__}"
    )


def _collect(label: str, pairs: list[tuple[str, Array]], *, numbered: bool) -> Source:
    arrays: dict[str, Array] = {}
    repeated = set()
    for path, array in pairs:
        if path in arrays:
            repeated.add(path)
        arrays[path] = array
    for path in repeated:
        del arrays[path]
    return Source(label, arrays, numbered, frozenset(repeated))


def _check_kind(path: Path) -> None:
    name = path.name.lower()
    if name.endswith(_PICKLED):
        raise ValueError(
            f"{path.suffix!r} files are (or may be) pickles, which can run any code when they "
            f"are opened, so they are not read. Received: {str(path)!r}. Convert it to "
            "safetensors once, where it comes from: "
            "`safetensors.torch.save_file(model.state_dict(), 'weights.safetensors')`."
        )
    if name.endswith((".keras", ".weights.h5", ".safetensors")):
        return
    if name.endswith((".h5", ".hdf5")):
        raise ValueError(
            "Whole-model HDF5 files are not read. "
            f"Received: {str(path)!r}. Open it with `keras.saving.load_model(...)` and pass the "
            "model, or rename it if it was written by `save_weights('....weights.h5')`."
        )
    raise ValueError(f"`source` must be a {_READABLE} file. Received: {str(path)!r}")


def _check_exists(path: Path) -> None:
    if path.is_file():
        return
    if path.is_dir():
        raise ValueError(f"`source` must be a file. Received a folder: {str(path)!r}")
    beside = [each.name for each in path.parent.iterdir()] if path.parent.is_dir() else []
    raise FileNotFoundError(
        f"There is no weights file {str(path)!r}.{_checks.did_you_mean(path.name, beside)}"
    )


def _read_safetensors(path: Path) -> Iterator[tuple[str, Array]]:
    try:
        import safetensors
        import safetensors.numpy
    except ImportError as error:
        raise ImportError(
            "Reading `.safetensors` files needs the `safetensors` library. "
            "Install it with `pip install safetensors`."
        ) from error
    try:
        yield from safetensors.numpy.load_file(path).items()
    except safetensors.SafetensorError as error:
        raise ValueError(str(error)) from error
    except AttributeError as error:  # such as NumPy's, for `numpy.float8_e4m3fn`
        raise ValueError(
            f"NumPy lacks the type of its numbers ({error}). Save them as float32"
        ) from error


def _read_keras(path: Path) -> Iterator[tuple[str, Array]]:
    """Reads the weights of a `.keras` archive or `.weights.h5` file without making the model.

    No class named in the file is imported, so a file from elsewhere cannot run code here.
    """
    if path.name.lower().endswith(".weights.h5"):
        check_names(path)
        with h5py.File(path, "r") as file:
            yield from _walk(file, "", top=True)
        return
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if "model.weights.h5" not in names:
            raise ValueError(f"there is no model.weights.h5 in the archive, only {names[:5]}")
        content = archive.read("model.weights.h5")
    check_heaps(content)
    with h5py.File(io.BytesIO(content), "r") as file:
        yield from _walk(file, "", top=True)


def _walk(group: h5py.Group, layer_path: str, *, top: bool) -> Iterator[tuple[str, Array]]:
    for key in group:
        # Links to other files would let a weights file name any HDF5 file of this machine.
        if group.get(key, getlink=True, getclass=True) is not h5py.HardLink:
            raise ValueError(f"it holds a link instead of data: {group.name}/{key}")
        child = group[key]
        if not isinstance(child, h5py.Group) or (top and key == "optimizer"):
            continue
        if key == "vars":
            for index in sorted(child, key=lambda name: (len(name), name)):
                if isinstance(child[index], h5py.Dataset):
                    yield join(layer_path, index), _as_array(child[index])
        elif "vars" in child:
            # Groups are called after classes ("dense_1"); the layer's name is an attribute.
            name = child["vars"].attrs.get("name", key)
            yield from _walk(child, join(layer_path, str(name)), top=False)
        else:  # A container ("layers", a list attribute): not a layer, so not in the path.
            yield from _walk(child, layer_path, top=False)


def _as_array(dataset: h5py.Dataset) -> Array:
    if dataset.external or dataset.is_virtual:
        raise ValueError(f"its data lies in another file: {dataset.name}")
    if dataset.attrs.get("dtype") == "bfloat16":  # HDF5 has no such type; Keras marks it.
        import ml_dtypes

        return np.array(dataset, dtype=ml_dtypes.bfloat16)
    if dataset.shape is None or dataset.dtype.kind not in "biuf":
        raise ValueError(f"it holds no numbers: {dataset.name}, of dtype {dataset.dtype}")
    return np.array(dataset)
