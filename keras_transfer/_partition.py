"""Splits a row of blocks into contiguous runs; plain numbers, no Keras."""

from __future__ import annotations

from collections.abc import Sequence


def equal_runs(sizes: Sequence[int], runs: int) -> list[int]:
    """Cuts `sizes` into contiguous runs whose largest sum is smallest.

    Args:
        sizes: Size of each block, in order.
        runs: How many runs to make, 1 to `len(sizes)`.

    Returns:
        Where each run starts; the first is 0.

    >>> equal_runs([5, 1, 1, 1, 2], 2)
    [0, 1]
    """
    if not 1 <= runs <= len(sizes):
        raise ValueError(f"Cannot cut {len(sizes)} blocks into {runs} runs.")
    prefix = [0]
    for size in sizes:
        prefix.append(prefix[-1] + size)
    # best[end] is (largest run, starts) for the blocks before `end`.
    best = [(prefix[end], [0]) for end in range(len(sizes) + 1)]
    for made in range(2, runs + 1):
        longer = list(best)
        for end in range(made, len(sizes) + 1):
            options = [
                (max(best[start][0], prefix[end] - prefix[start]), [*best[start][1], start])
                for start in range(made - 1, end)
            ]
            longer[end] = min(options)
        best = longer
    return best[len(sizes)][1]
