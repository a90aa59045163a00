"""How the loss of an LR range test is smoothed, and the rules that read a rate off it.

Everything here is a function of arrays. The rules take learning rates and smoothed
losses whose ends are dropped already; `LRCurve.suggest` does that, and refuses curves
that cannot be answered from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

# fastai's: a loss this many times the best has diverged.
DIVERGENCE_FACTOR = 4.0


def smooth(losses: Sequence[float] | Array, smoothing: float) -> Array:
    """Exponential moving average, corrected for its start.

    Args:
        losses: Values, oldest first.
        smoothing: Share of the past, in [0, 1).

    Returns:
        The averages, as many as `losses`.

    Example:

    >>> from keras_transfer.lr_rules import smooth
    >>> smooth([1.0, 3.0, 3.0], smoothing=0.5).round(3).tolist()
    [1.0, 2.333, 2.714]
    """
    averages = np.empty(len(losses))
    average = 0.0
    for i, loss in enumerate(losses):
        average = smoothing * average + (1 - smoothing) * loss
        averages[i] = average / (1 - smoothing ** (i + 1))
    return averages


def has_diverged(losses: Sequence[float] | Array, smoothing: float) -> bool:
    """Whether the newest loss is not finite, or the smoothed one over 4 times its best.

    Args:
        losses: Losses so far, oldest first.
        smoothing: Share of the past in the smoothed loss, in [0, 1).

    Returns:
        Whether an LR range test should stop here.

    Example:

    >>> from keras_transfer.lr_rules import has_diverged
    >>> has_diverged([1.0, 0.5, 1.9], smoothing=0), has_diverged([1.0, 0.5, 2.1], smoothing=0)
    (False, True)
    """
    losses = np.asarray(losses, dtype=float)
    if not np.isfinite(losses).all():
        return True
    smoothed = smooth(losses, smoothing)
    best = float(smoothed.min())
    # 4 times the best, said so that it also holds for losses below 0.
    return float(smoothed[-1]) > best + (DIVERGENCE_FACTOR - 1) * abs(best)


def valley(learning_rates: Array, losses: Array, *, plateau: float = 0.05) -> float:
    """The middle of the longest fall: fastai's default rule.

    The fall is the longest decreasing subsequence of the losses. It ends where its last
    point lies and is as long as it has points. Unlike fastai's, it begins no sooner than
    the loss has fallen by a share `plateau` of its whole fall: on a smooth curve the loss
    falls from the first point on, by next to nothing, and the middle of that would be
    decades too low.

    Args:
        learning_rates: Learning rates, growing.
        losses: Smoothed losses.
        plateau: Share of the largest fall that still counts as plateau, in [0, 1).

    Returns:
        A learning rate out of `learning_rates`.

    Example:

    >>> import numpy as np
    >>> from keras_transfer.lr_rules import valley
    >>> valley(np.array([1, 2, 3, 4, 5, 6.0]), np.array([9, 9, 7, 6, 5, 8.0]))
    4.0
    """
    fallen = np.maximum.accumulate(losses) - losses
    start = int(np.argmax(fallen > plateau * fallen.max()))
    learning_rates, losses = learning_rates[start:], losses[start:]
    length = np.ones(len(losses), int)
    for i in range(1, len(losses)):
        before = length[:i][losses[:i] > losses[i]]
        if len(before):
            length[i] = before.max() + 1
    end = int(np.argmax(length))
    return float(learning_rates[end - int(length[end]) // 2])


def steep(learning_rates: Array, losses: Array) -> float:
    """Where the loss falls fastest for each factor of the learning rate.

    Args:
        learning_rates: Learning rates, growing.
        losses: Smoothed losses.

    Returns:
        A learning rate out of `learning_rates`.

    Example:

    >>> import numpy as np
    >>> from keras_transfer.lr_rules import steep
    >>> steep(np.array([1, 2, 4, 8.0]), np.array([9, 8, 5, 4.0]))
    2.0
    """
    slopes = np.diff(losses) / np.diff(np.log(learning_rates))
    return float(learning_rates[int(np.argmin(slopes))])


def minimum(learning_rates: Array, losses: Array) -> float:
    """A tenth of the learning rate with the lowest loss.

    Args:
        learning_rates: Learning rates, growing.
        losses: Smoothed losses.

    Returns:
        A learning rate.

    Example:

    >>> import numpy as np
    >>> from keras_transfer.lr_rules import minimum
    >>> minimum(np.array([1, 2, 4, 8.0]), np.array([9, 8, 5, 6.0]))
    0.4
    """
    return float(learning_rates[int(np.argmin(losses))]) / 10


def slide(
    learning_rates: Array,
    losses: Array,
    *,
    window_fraction: float = 0.15,
    threshold: float = 0.005,
) -> float:
    """Before the loss begins to rise: slides a window down from the largest rate.

    The window stops where the loss is as steep at its left end as at its right, and its
    left end is the answer. fastai's rule, made independent of the loss's scale and of
    the number of steps.

    Args:
        learning_rates: Learning rates, growing.
        losses: Smoothed losses.
        window_fraction: Width of the window, as a share of the points, in (0, 1).
        threshold: Difference of steepness that counts as none, as a share of the loss's
            largest fall, by step. At least 0.

    Returns:
        A learning rate out of `learning_rates`.

    Raises:
        ValueError: If the steepness never settles.

    Example:

    >>> import numpy as np
    >>> from keras_transfer.lr_rules import slide
    >>> rates, steps = np.geomspace(1e-4, 1, 40), np.arange(40)
    >>> losses = 2.0 - steps / 40 + np.exp(steps - 34.0)
    >>> 1e-3 < slide(rates, losses) < 0.2
    True
    """
    window = max(2, round(window_fraction * len(losses)))
    slopes = np.gradient(losses)
    least = threshold * largest_fall(losses)
    right = len(losses) - 1
    while right >= window and abs(slopes[right] - slopes[right - window]) > least:
        right -= 1
    if right < window:
        raise ValueError(
            "The steepness of the loss never settles, so the rule 'slide' finds no end. Take "
            "more steps or larger batches, or use the rule 'valley'."
        )
    return float(learning_rates[right - window])


RULES: dict[str, Callable[[Array, Array], float]] = {
    "valley": valley,
    "steep": steep,
    "minimum": minimum,
    "slide": slide,
}


def largest_fall(losses: Array) -> float:
    """Returns the largest drop from a value to a later one."""
    return float((np.maximum.accumulate(losses) - losses).max())


def until_not_finite(losses: Array) -> Array:
    """Returns the values before the first that is infinite or NaN."""
    bad = np.flatnonzero(~np.isfinite(losses))
    return losses[: bad[0]] if len(bad) else losses
