"""Pictures of LR curves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from keras_transfer.lr_curve import LRCurve
from keras_transfer.plotting._axes import ACCENTS, FAINT, TRAIN, new_axes, tidy


def plot_lr_curve(
    curve: LRCurve,
    ax: Any = None,
    rule: str | Callable[[Any, Any], float] | Sequence[str] | None = "valley",
) -> Any:
    """Draws the loss against the learning rate, with the suggested rate.

    Args:
        curve: What `keras_transfer.find_lr` returned.
        ax: Matplotlib axes to draw into; `None` for new ones.
        rule: The rule or rules whose suggestion is marked, as in `LRCurve.suggest`;
            `None` for none. A rule that finds nothing is named in the legend.

    Returns:
        The axes.

    Raises:
        ImportError: If matplotlib is not installed.

    Example:

    >>> import numpy as np
    >>> from keras_transfer import plotting
    >>> from keras_transfer.lr_curve import LRCurve
    >>> rates = np.geomspace(1e-5, 1, 100)
    >>> ax = plotting.plot_lr_curve(LRCurve(rates, 2 - rates / (rates + 1e-2)))
    >>> ax.get_xscale(), ax.get_xlabel()
    ('log', 'learning rate')
    """
    if not isinstance(curve, LRCurve):
        raise TypeError(
            f"`curve` must be an `LRCurve`, as `find_lr` returns. Received: curve={curve!r}"
        )
    ax = new_axes(ax, (6.4, 4.0))
    rates, losses = np.asarray(curve.learning_rates), np.asarray(curve.losses)
    smoothed = np.asarray(curve.smoothed_losses)
    ax.plot(rates, losses, ".", color=FAINT, markersize=4, label="each batch")
    ax.plot(rates[: len(smoothed)], smoothed, color=TRAIN, linewidth=2, label="smoothed")
    rules = [rule] if isinstance(rule, str) or callable(rule) else list(rule or [])
    for i, one in enumerate(rules):
        _mark_suggestion(ax, curve, one, i)
    ax.set_xscale("log")
    ax.set_xlabel("learning rate")
    ax.set_ylabel("loss")
    ax.set_title("LR curve" + (f" in stage {curve.stage!r}" if curve.stage else ""))
    _limit_height(ax, losses)
    ax.legend(framealpha=0.85, edgecolor="none")
    tidy(ax)
    return ax


def _mark_suggestion(ax: Any, curve: LRCurve, rule: Any, number: int) -> None:
    name = rule if isinstance(rule, str) else getattr(rule, "__name__", "rule")
    color = ACCENTS[number % len(ACCENTS)]
    try:
        rate = curve.suggest(rule)
    except ValueError:
        ax.plot([], [], " ", label=f"{name}: no suggestion")
        return
    smoothed = np.asarray(curve.smoothed_losses)
    seen = np.log(curve.learning_rates[: len(smoothed)])
    ax.axvline(rate, color=color, linewidth=1, linestyle="--")
    ax.plot(
        [rate],
        [np.interp(np.log(rate), seen, smoothed)],
        "o",
        color=color,
        label=f"{name}: {rate:.1e}",
    )


def _limit_height(ax: Any, losses: np.ndarray) -> None:
    # The batches after divergence may be thousands of times the rest.
    losses = losses[np.isfinite(losses)]
    if len(losses) < 2:
        return
    lowest, start = float(losses.min()), float(losses[: max(1, len(losses) // 2)].max())
    height = max(start - lowest, 1e-12)
    ax.set_ylim(lowest - 0.08 * height, min(losses.max(), start + 0.4 * height) + 0.08 * height)
