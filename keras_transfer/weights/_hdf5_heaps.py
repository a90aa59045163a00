"""Looks through the names in an HDF5 file for damage at which its library would hang.

Names lie in global heaps, as entries of a number (0: free space), a count of references and a
size. HDF5 1.14.6 steps over free space by its size: where zeros were written over an entry, it
stays there, inside C code that no timeout of Python's ends.
"""

from __future__ import annotations

import mmap
from pathlib import Path

_HEAP = b"GCOL\x01\x00\x00\x00"  # how a global heap of an HDF5 file begins


def check_names(path: Path) -> None:
    """Raises where damage would make the HDF5 library read layers' names for ever.

    Raises:
        ValueError: If the file is empty, or its names are damaged so.
    """
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        check_heaps(content)


def check_heaps(content: bytes | mmap.mmap) -> None:
    """Raises as `check_names` does, for what a file holds."""
    at = content.find(_HEAP)
    while at >= 0:
        entry, end = at + 16, at + int.from_bytes(content[at + 8 : at + 16], "little")
        while entry + 16 <= min(end, len(content)):
            size = int.from_bytes(content[entry + 8 : entry + 16], "little")
            if any(content[entry : entry + 2]):
                entry += 16 + (size + 7) // 8 * 8
            elif size == 0:
                raise ValueError(f"zeros in place of a layer's name, at byte {entry}")
            else:
                entry += size
        at = content.find(_HEAP, at + len(_HEAP))
