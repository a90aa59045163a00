"""Reads a PyTorch state dict into NumPy arrays, without PyTorch and without running its pickle."""

from __future__ import annotations

import collections
import pickle
import struct
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
_PROTOCOL_VERSION = 1001
_STORAGE_TYPES = {
    "FloatStorage": np.dtype("<f4"),
    "DoubleStorage": np.dtype("<f8"),
    "HalfStorage": np.dtype("<f2"),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("<i1"),
    "ByteStorage": np.dtype("<u1"),
}


def read_torch_file(path: str | Path) -> dict[str, Any]:
    """Reads what `torch.save` wrote before PyTorch 1.6, such as a state dict.

    The file is five pickles followed by the raw numbers. The pickles may name storages,
    the function that makes a tensor of one, and `OrderedDict`; everything else is refused
    before it runs.

    Args:
        path: The `.pth` or `.pt` file.

    Returns:
        The saved dictionary, with a NumPy array in each tensor's place.

    Raises:
        pickle.UnpicklingError: If the file names any other class or function.
        ValueError: If the file is of another format or damaged.
    """
    path = Path(path)
    with path.open("rb") as file:
        if file.read(2) == b"PK":
            raise ValueError(
                f"{path.name!r} has the zip format that PyTorch writes since 1.6, which is not "
                "read here. Convert it to safetensors, and use "
                "`keras_transfer.weights.transfer_weights` with `source_layout='torch'`."
            )
        file.seek(0)
        return _read(file, size=path.stat().st_size)


def _read(file: IO[bytes], size: int) -> dict[str, Any]:
    unpickler = _TensorUnpickler(file, size)
    if unpickler.next() != _MAGIC_NUMBER or unpickler.next() != _PROTOCOL_VERSION:
        raise ValueError("The file was not written by `torch.save`: its first bytes are others.")
    if not unpickler.next().get("little_endian"):
        raise ValueError("The file was written on a big-endian machine, which is not read here.")
    saved = unpickler.next()
    for key in unpickler.next():
        storage = unpickler.storages[key]
        # Filled where it lies: the tensors are views of it.
        header, data = file.read(8), file.read(storage.nbytes)
        if len(data) < storage.nbytes or struct.unpack("<q", header) != (storage.size,):
            raise ValueError("The file is damaged: it ends early, or its sizes contradict.")
        storage[:] = np.frombuffer(data, storage.dtype)
    return dict(saved)


class _TensorUnpickler:
    """Reads one pickle after the other; storages found in one are there for the next."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self.file = file
        self.size = size
        self.storages: dict[str, NDArray[Any]] = {}

    def next(self) -> Any:
        unpickler = _OnePickle(self.file)
        unpickler.reader = self
        return unpickler.load()

    def storage(self, identifier: Any) -> NDArray[Any]:
        """Returns the storage that a pickle's persistent identifier names."""
        kind, dtype, key, _, length, view = identifier
        if kind != "storage" or not isinstance(dtype, np.dtype) or view is not None:
            raise pickle.UnpicklingError(f"The pickle refers to something unknown: {identifier!r}")
        if not 0 <= length * dtype.itemsize <= self.size:
            raise ValueError(f"The file is damaged: a storage of {length} numbers is too large.")
        return self.storages.setdefault(key, np.zeros(length, dtype))


class _OnePickle(pickle.Unpickler):
    reader: _TensorUnpickler

    def persistent_load(self, identifier: Any) -> NDArray[Any]:
        return self.reader.storage(identifier)

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _tensor
        if module == "torch" and name in _STORAGE_TYPES:
            return _STORAGE_TYPES[name]
        raise pickle.UnpicklingError(
            f"The file must hold tensors and dictionaries and nothing else. Received: "
            f"{module}.{name}. Nothing of it was run."
        )


def _tensor(
    storage: NDArray[Any],
    offset: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    *_: Any,
) -> NDArray[Any]:
    """Does what `torch._utils._rebuild_tensor_v2` does: a strided view of a storage."""
    last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    small = min((offset, *shape, *strides)) < 0
    # An unchecked view would read whatever lies in memory behind the storage.
    if small or (0 not in shape and last >= storage.size):
        raise ValueError("The file is damaged: a tensor reaches beyond its storage.")
    itemsize = storage.itemsize
    return np.lib.stride_tricks.as_strided(
        storage[offset:], shape, tuple(step * itemsize for step in strides), writeable=False
    )
