"""1,797 handwritten digits of 8x8 pixels (`scikit-learn`'s `load_digits`, BSD-3)."""

from __future__ import annotations

import gzip

import numpy as np
from numpy.typing import NDArray

from examples._installed_file import InstalledFile

DIGITS = InstalledFile(
    package="scikit-learn",
    version="1.9.1",
    path="sklearn/datasets/data/digits.csv.gz",
    sha256="09f66e6debdee2cd2b5ae59e0d6abbb73fc2b0e0185d2e1957e9ebb51e23aa22",
    no_dependencies=False,
)


def load() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Loads the digits, in the file's order, which is not sorted by class.

    Returns:
        Images, `(1797, 8, 8)` in [0, 16], and their digits.

    Raises:
        ImportError: If scikit-learn is not installed.
        ValueError: If its file is not the expected one.
    """
    with gzip.open(DIGITS.locate(), "rt") as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.int64)
    return table[:, :-1].reshape(-1, 8, 8).astype(np.uint8), table[:, -1]
