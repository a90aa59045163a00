"""Plain-text tables."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def format_table(rows: Sequence[Sequence[str]]) -> str:
    """Lays out rows of text as a plain table; the first row is the header."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    lines.insert(1, "  ".join("-" * w for w in widths))
    return "\n".join(lines)


def format_shape(shape: Sequence[int | None]) -> str:
    """Writes a tensor's shape, with `…` for what is not known beforehand."""
    return "(" + ", ".join("…" if d is None else str(d) for d in shape) + ")"


def format_size(size: float) -> str:
    """Writes a number of bytes."""
    if size >= 1e9:
        return f"{size / 1e9:.1f} GB"
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"


def format_spread(values: Sequence[float]) -> str:
    """Writes the mean of values and their standard deviation, which one value has not."""
    mean = f"{np.mean(values):.3f}"
    return mean if len(values) < 2 else f"{mean} ± {np.std(values, ddof=1):.3f}"
