"""Learning-rate schedules as plain functions of the step; no Keras, no TensorFlow.

Every schedule counts steps from 0, reaches its peak at `warmup_steps`, and its last value
at `total_steps`, one step after the last that is run.
"""

from __future__ import annotations

import math

from keras_transfer import _checks


def constant(step: float, *, peak_lr: float, total_steps: int | None = None) -> float:
    """Constant learning rate.

    Args:
        step: Optimizer step, counted from 0.
        peak_lr: The learning rate. At least 0.
        total_steps: Length of the schedule, in optimizer steps; makes no difference, and
            is here so that schedules can be exchanged.

    Returns:
        `peak_lr`.

    Raises:
        ValueError: If an argument is out of range.

    Example:

    >>> from keras_transfer.schedules import constant
    >>> constant(7, peak_lr=0.01)
    0.01
    """
    _checks.number(step, "step", minimum=0)
    if total_steps is not None:
        _checks.integer(total_steps, "total_steps", minimum=1)
    return _checks.number(peak_lr, "peak_lr", minimum=0)


def cosine(step: float, *, total_steps: int, peak_lr: float, final_fraction: float = 0.0) -> float:
    """Cosine learning rate: half a cosine wave from the peak down.

    Args:
        step: Optimizer step, counted from 0. Steps past `total_steps` keep the last value.
        total_steps: Length of the schedule, in optimizer steps (not epochs). At least 1.
        peak_lr: Learning rate at step 0. At least 0.
        final_fraction: Share of `peak_lr` left at `total_steps`, in [0, 1]. The `alpha` of
            `keras.optimizers.schedules.CosineDecay`.

    Returns:
        The learning rate at `step`, between `peak_lr * final_fraction` and `peak_lr`.

    Raises:
        ValueError: If an argument is out of range.

    Example:

    >>> from keras_transfer.schedules import cosine
    >>> [round(cosine(t, total_steps=4, peak_lr=0.01), 5) for t in range(5)]
    [0.01, 0.00854, 0.005, 0.00146, 0.0]

    Reference:
        - [Loshchilov & Hutter, 2017](https://arxiv.org/abs/1608.03983), eq. 5, no restarts
    """
    return warmup_cosine(
        step,
        total_steps=total_steps,
        peak_lr=peak_lr,
        warmup_steps=0,
        final_fraction=final_fraction,
    )


def warmup_cosine(
    step: float,
    *,
    total_steps: int,
    peak_lr: float,
    warmup_fraction: float = 0.1,
    warmup_steps: int | None = None,
    start_fraction: float = 0.0,
    final_fraction: float = 0.0,
) -> float:
    """Linear warm-up, then half a cosine wave down.

    Args:
        step: Optimizer step, counted from 0. Steps past `total_steps` keep the last value.
        total_steps: Length of the schedule, in optimizer steps (not epochs). At least 1.
        peak_lr: Learning rate at the end of the warm-up. At least 0.
        warmup_fraction: Share of the steps spent rising, in (0, 1).
        warmup_steps: Steps spent rising, instead of `warmup_fraction`; below
            `total_steps`. 0 starts at the peak.
        start_fraction: Share of `peak_lr` at step 0, in [0, 1]. At the published 0 the
            first step moves nothing.
        final_fraction: Share of `peak_lr` left at `total_steps`, in [0, 1].

    Returns:
        The learning rate at `step`, between 0 and `peak_lr`.

    Raises:
        ValueError: If an argument is out of range, or `total_steps` is so small that no
            step falls in the rise.

    Example:

    >>> from keras_transfer.schedules import warmup_cosine
    >>> lr = [warmup_cosine(t, total_steps=100, peak_lr=0.01) for t in range(100)]
    >>> lr.index(max(lr)), round(lr[5], 6), round(lr[55], 6), round(lr[99], 6)
    (10, 0.005, 0.005, 3e-06)

    Reference:
        - [Goyal et al., 2017](https://arxiv.org/abs/1706.02677), section 2.2, warm-up
        - [Loshchilov & Hutter, 2017](https://arxiv.org/abs/1608.03983), eq. 5
    """
    _checks.number(peak_lr, "peak_lr", minimum=0)
    _checks.number(start_fraction, "start_fraction", minimum=0, maximum=1)
    _checks.number(final_fraction, "final_fraction", minimum=0, maximum=1)
    is_rising, progress = _phase(step, total_steps, warmup_fraction, warmup_steps)
    if is_rising:
        return peak_lr * (start_fraction + (1 - start_fraction) * progress)
    return peak_lr * _cosine_between(1.0, final_fraction, progress)


def one_cycle(
    step: float,
    *,
    total_steps: int,
    peak_lr: float,
    warmup_fraction: float = 0.25,
    warmup_steps: int | None = None,
    start_ratio: float = 25.0,
    final_ratio: float = 1e5,
) -> float:
    """One-cycle learning rate: half a cosine wave up, a longer one down to almost nothing.

    The formula and the defaults are fastai's. PyTorch's `OneCycleLR` differs by one step
    at each end, rises over 0.3 of the steps, and divides its *start* by `final_div_factor`.

    Args:
        step: Optimizer step, counted from 0. Steps past `total_steps` keep the last value.
        total_steps: Length of the schedule, in optimizer steps (not epochs). At least 1.
        peak_lr: Learning rate at the top of the cycle. At least 0.
        warmup_fraction: Share of the steps spent rising, in (0, 1). fastai's `pct_start`.
        warmup_steps: Steps spent rising, instead of `warmup_fraction`; below
            `total_steps`. 0 starts at the peak.
        start_ratio: `peak_lr` divided by the learning rate at step 0. At least 1. fastai's
            `div`.
        final_ratio: `peak_lr` divided by the learning rate at `total_steps`. At least 1.
            fastai's `div_final`.

    Returns:
        The learning rate at `step`, between `peak_lr` and the lower of its two ends.

    Raises:
        ValueError: If an argument is out of range, or `total_steps` is so small that no
            step falls in the rise.

    Example:

    >>> from keras_transfer.schedules import one_cycle
    >>> lr = [one_cycle(t, total_steps=100, peak_lr=0.01) for t in range(101)]
    >>> lr.index(max(lr)), lr[0], max(lr), round(lr[100], 9)
    (25, 0.0004, 0.01, 1e-07)

    Reference:
        - [Smith & Topin, 2017](https://arxiv.org/abs/1708.07120)
    """
    _checks.number(peak_lr, "peak_lr", minimum=0)
    _checks.number(start_ratio, "start_ratio", minimum=1)
    _checks.number(final_ratio, "final_ratio", minimum=1)
    is_rising, progress = _phase(step, total_steps, warmup_fraction, warmup_steps)
    if is_rising:
        return peak_lr * _cosine_between(1 / start_ratio, 1.0, progress)
    return peak_lr * _cosine_between(1.0, 1 / final_ratio, progress)


def slanted_triangular(
    step: float,
    *,
    total_steps: int,
    peak_lr: float,
    warmup_fraction: float = 0.1,
    warmup_steps: int | None = None,
    ratio: float = 32.0,
) -> float:
    """Slanted triangular learning rate: short linear rise, long linear fall.

    Where `total_steps * warmup_fraction` is no whole number, the paper's formula falls
    below its own lowest rate before the end; here the fall is stretched to end at
    `total_steps`, as AllenNLP does.

    Args:
        step: Optimizer step, counted from 0. Steps past `total_steps` keep the last value.
        total_steps: Length of the schedule, in optimizer steps (not epochs). At least 1.
        peak_lr: Learning rate at the top of the triangle. At least 0.
        warmup_fraction: Share of the steps spent rising, in (0, 1). The paper's
            `cut_frac`.
        warmup_steps: Steps spent rising, instead of `warmup_fraction`; below
            `total_steps`. 0 starts at the top.
        ratio: `peak_lr` divided by the lowest learning rate. At least 1.

    Returns:
        The learning rate at `step`, between `peak_lr / ratio` and `peak_lr`.

    Raises:
        ValueError: If an argument is out of range, or `total_steps` is so small that no
            step falls in the rise.

    Example:

    >>> from keras_transfer.schedules import slanted_triangular
    >>> lr = [slanted_triangular(t, total_steps=100, peak_lr=0.01) for t in range(100)]
    >>> lr.index(max(lr)), round(lr[0], 6), round(max(lr), 6)
    (10, 0.000313, 0.01)

    Reference:
        - [Howard & Ruder, 2018](https://arxiv.org/abs/1801.06146), eq. 3
    """
    _checks.number(peak_lr, "peak_lr", minimum=0)
    _checks.number(ratio, "ratio", minimum=1)
    is_rising, progress = _phase(step, total_steps, warmup_fraction, warmup_steps)
    height = progress if is_rising else 1 - progress
    return peak_lr * (1 + height * (ratio - 1)) / ratio


def count_warmup_steps(
    total_steps: int, warmup_fraction: float = 0.1, warmup_steps: int | None = None
) -> int:
    """Returns how many steps a schedule spends rising; its peak is at that step.

    Args:
        total_steps: Length of the schedule, in optimizer steps. At least 1.
        warmup_fraction: Share of the steps spent rising, in (0, 1); rounded down.
        warmup_steps: Steps spent rising, instead of `warmup_fraction`; below
            `total_steps`.

    Returns:
        The length of the rise, in optimizer steps.

    Raises:
        ValueError: If an argument is out of range, or if `warmup_fraction` leaves no step
            for the rise.

    Example:

    >>> from keras_transfer.schedules.functions import count_warmup_steps
    >>> count_warmup_steps(105), count_warmup_steps(105, warmup_steps=0)
    (10, 0)
    """
    total_steps = _checks.integer(total_steps, "total_steps", minimum=1)
    warmup_fraction = _checks.number(warmup_fraction, "warmup_fraction", above=0, below=1)
    if warmup_steps is not None:
        warmup_steps = _checks.integer(warmup_steps, "warmup_steps", minimum=0)
        if warmup_steps >= total_steps:
            raise ValueError(
                "`warmup_steps` must leave at least one step for the fall. "
                f"Received: warmup_steps={warmup_steps}, total_steps={total_steps}"
            )
        return warmup_steps
    warmup_steps = round_down(total_steps, warmup_fraction)
    if warmup_steps == 0:
        raise ValueError(
            "`total_steps` must leave at least one step for the rise. "
            f"Received: total_steps={total_steps}, warmup_fraction={warmup_fraction:g} (a rise "
            f"of 0 steps). Use at least {math.ceil(1 / warmup_fraction - 1e-9)} steps, or a "
            "larger `warmup_fraction`, or warmup_steps=0 to start at the peak."
        )
    return warmup_steps


def round_down(total_steps: int, fraction: float) -> int:
    """Returns the whole steps in a share of `total_steps`, at most all of them but one."""
    # 100 * 0.29 is 28.999999999999996, and means 29.
    return min(math.floor(total_steps * fraction + 1e-9), total_steps - 1)


def _phase(
    step: float, total_steps: int, warmup_fraction: float, warmup_steps: int | None
) -> tuple[bool, float]:
    """Returns whether `step` lies in the rise, and the share of its phase that is over."""
    warmup_steps = count_warmup_steps(total_steps, warmup_fraction, warmup_steps)
    step = min(_checks.number(step, "step", minimum=0), total_steps)
    if step < warmup_steps:
        return True, step / warmup_steps
    return False, (step - warmup_steps) / (total_steps - warmup_steps)


def _cosine_between(start: float, end: float, progress: float) -> float:
    # Weights that add up to 1 keep both ends exact and everything else between them.
    share = (1 + math.cos(math.pi * progress)) / 2
    return start * share + end * (1 - share)
