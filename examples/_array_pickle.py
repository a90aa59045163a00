"""Reads a pickled NumPy array without running what else a pickle could run."""

from __future__ import annotations

import pickle
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

# NumPy's own rebuilding function has moved between modules; an array names it under any version.
_RECONSTRUCT = np.empty(0).__reduce__()[0]
_ADMITTED = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ADMITTED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"The file must hold NumPy arrays and nothing else. Received: {module}.{name}. "
                "Nothing of it was run."
            ) from None


def load_array(file: IO[bytes]) -> NDArray[Any]:
    """Reads one pickled NumPy array; anything else in the pickle is refused.

    Args:
        file: An open binary file.

    Returns:
        The array.

    Raises:
        pickle.UnpicklingError: If the pickle names any class or function that an array of
            numbers does not need, or holds something else than such an array.
    """
    array = _ArrayUnpickler(file).load()
    if not isinstance(array, np.ndarray) or array.dtype.hasobject:
        kind = getattr(array, "dtype", type(array).__name__)
        raise pickle.UnpicklingError(f"The file must hold an array of numbers. Received: {kind}")
    return array
