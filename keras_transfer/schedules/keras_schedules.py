"""The schedules as Keras learning-rate schedules, computed in the graph from the step."""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops

from keras_transfer import _checks
from keras_transfer.schedules import functions


class RiseAndFall(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule that rises to a peak and falls; base of those that follow.

    A subclass says how far up its two phases are, as a share of the peak.

    Args:
        peak_lr: Learning rate at the top. At least 0.
        total_steps: Length of the schedule, in optimizer steps. At least 1.
        warmup_fraction: Share of the steps spent rising, in (0, 1).
        warmup_steps: Steps spent rising, instead of `warmup_fraction`; below
            `total_steps`. 0 starts at the peak.

    Raises:
        ValueError: If an argument is out of range, or if no step falls in the rise.
    """

    def __init__(
        self,
        peak_lr: float,
        total_steps: int,
        warmup_fraction: float = 0.1,
        warmup_steps: int | None = None,
    ) -> None:
        super().__init__()
        self.peak_lr = _checks.number(peak_lr, "peak_lr", minimum=0)
        self.total_steps = _checks.integer(total_steps, "total_steps", minimum=1)
        self.warmup_fraction = warmup_fraction
        self.warmup_steps = warmup_steps
        self._peak_step = functions.count_warmup_steps(total_steps, warmup_fraction, warmup_steps)

    def rise(self, progress: Any) -> Any:
        """Returns the share of the peak where a share `progress` of the rise is over."""
        raise NotImplementedError

    def fall(self, progress: Any) -> Any:
        """Returns the share of the peak where a share `progress` of the fall is over."""
        raise NotImplementedError

    def __call__(self, step: Any) -> Any:
        # Clipped as a whole number: float32 cannot count beyond 2**24.
        step = ops.clip(ops.convert_to_tensor(step), 0, self.total_steps)
        step = ops.cast(step, "float32")
        fall_steps = self.total_steps - self._peak_step
        fallen = self.fall(ops.maximum(step - self._peak_step, 0.0) / fall_steps)
        if self._peak_step == 0:
            return self.peak_lr * fallen
        risen = self.rise(step / self._peak_step)
        return self.peak_lr * ops.where(step < self._peak_step, risen, fallen)

    def get_config(self) -> dict[str, Any]:
        return {
            "peak_lr": self.peak_lr,
            "total_steps": self.total_steps,
            "warmup_fraction": self.warmup_fraction,
            "warmup_steps": self.warmup_steps,
        }


@keras.saving.register_keras_serializable(package="keras_transfer")
class Constant(keras.optimizers.schedules.LearningRateSchedule):
    """Constant learning rate, for places that want a schedule.

    Args:
        peak_lr: The learning rate. At least 0.

    Call arguments:
        step: Optimizer step, counted from 0.

    Returns:
        `peak_lr`, float32.

    Raises:
        ValueError: If `peak_lr` is negative or not finite.

    Example:

    >>> from keras_transfer.schedules import Constant
    >>> round(float(Constant(0.01)(3)), 6)
    0.01
    """

    def __init__(self, peak_lr: float) -> None:
        super().__init__()
        self.peak_lr = _checks.number(peak_lr, "peak_lr", minimum=0)

    def __call__(self, step: Any) -> Any:
        return ops.convert_to_tensor(self.peak_lr, dtype="float32")

    def get_config(self) -> dict[str, Any]:
        return {"peak_lr": self.peak_lr}


@keras.saving.register_keras_serializable(package="keras_transfer")
class WarmupCosine(RiseAndFall):
    """Linear warm-up, then half a cosine wave down: `schedules.warmup_cosine` in the graph.

    Args:
        peak_lr: Learning rate at the end of the warm-up. At least 0.
        total_steps: Length of the schedule, in optimizer steps. At least 1.
        warmup_fraction: Share of the steps spent rising, in (0, 1).
        warmup_steps: Steps spent rising, instead of `warmup_fraction`; below
            `total_steps`. 0 starts at the peak, also where `total_steps` is 1.
        start_fraction: Share of `peak_lr` at step 0, in [0, 1].
        final_fraction: Share of `peak_lr` left at `total_steps`, in [0, 1].

    Call arguments:
        step: Optimizer step, counted from 0: a number, an integer tensor or a variable.

    Returns:
        The learning rate, float32.

    Raises:
        ValueError: If an argument is out of range, or if no step falls in the rise.

    Example:

    >>> from keras_transfer.schedules import WarmupCosine
    >>> schedule = WarmupCosine(0.01, total_steps=100)
    >>> [round(float(schedule(step)), 4) for step in (0, 5, 10, 55, 100)]
    [0.0, 0.005, 0.01, 0.005, 0.0]

    Reference:
        - [Goyal et al., 2017](https://arxiv.org/abs/1706.02677), section 2.2, warm-up
        - [Loshchilov & Hutter, 2017](https://arxiv.org/abs/1608.03983), eq. 5
    """

    def __init__(
        self,
        peak_lr: float,
        total_steps: int,
        warmup_fraction: float = 0.1,
        warmup_steps: int | None = None,
        start_fraction: float = 0.0,
        final_fraction: float = 0.0,
    ) -> None:
        super().__init__(peak_lr, total_steps, warmup_fraction, warmup_steps)
        bounds = {"minimum": 0, "maximum": 1}
        self.start_fraction = _checks.number(start_fraction, "start_fraction", **bounds)
        self.final_fraction = _checks.number(final_fraction, "final_fraction", **bounds)

    def rise(self, progress: Any) -> Any:
        return self.start_fraction + (1 - self.start_fraction) * progress

    def fall(self, progress: Any) -> Any:
        return _cosine_between(1.0, self.final_fraction, progress)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "start_fraction": self.start_fraction,
            "final_fraction": self.final_fraction,
        }


@keras.saving.register_keras_serializable(package="keras_transfer")
class Cosine(WarmupCosine):
    """Half a cosine wave from the peak down: `schedules.cosine` in the graph.

    Args:
        peak_lr: Learning rate at step 0. At least 0.
        total_steps: Length of the schedule, in optimizer steps. At least 1.
        final_fraction: Share of `peak_lr` left at `total_steps`, in [0, 1].

    Call arguments:
        step: Optimizer step, counted from 0: a number, an integer tensor or a variable.

    Returns:
        The learning rate, float32.

    Raises:
        ValueError: If an argument is out of range.

    Example:

    >>> from keras_transfer.schedules import Cosine
    >>> [round(float(Cosine(0.01, total_steps=4)(step)), 5) for step in range(5)]
    [0.01, 0.00854, 0.005, 0.00146, 0.0]

    Reference:
        - [Loshchilov & Hutter, 2017](https://arxiv.org/abs/1608.03983), eq. 5, no restarts
    """

    def __init__(self, peak_lr: float, total_steps: int, final_fraction: float = 0.0) -> None:
        super().__init__(peak_lr, total_steps, warmup_steps=0, final_fraction=final_fraction)

    def get_config(self) -> dict[str, Any]:
        names = ("peak_lr", "total_steps", "final_fraction")
        return {name: getattr(self, name) for name in names}


@keras.saving.register_keras_serializable(package="keras_transfer")
class OneCycle(RiseAndFall):
    """Half a cosine wave up, a longer one down: `schedules.one_cycle` in the graph.

    Args:
        peak_lr: Learning rate at the top of the cycle. At least 0.
        total_steps: Length of the schedule, in optimizer steps. At least 1.
        warmup_fraction: Share of the steps spent rising, in (0, 1).
        warmup_steps: Steps spent rising, instead of `warmup_fraction`; below
            `total_steps`. 0 starts at the peak, also where `total_steps` is 1.
        start_ratio: `peak_lr` divided by the learning rate at step 0. At least 1.
        final_ratio: `peak_lr` divided by the learning rate at `total_steps`. At least 1.

    Call arguments:
        step: Optimizer step, counted from 0: a number, an integer tensor or a variable.

    Returns:
        The learning rate, float32.

    Raises:
        ValueError: If an argument is out of range, or if no step falls in the rise.

    Example:

    >>> from keras_transfer.schedules import OneCycle
    >>> schedule = OneCycle(0.01, total_steps=100)
    >>> [round(float(schedule(step)), 4) for step in (0, 25, 100)]
    [0.0004, 0.01, 0.0]

    Reference:
        - [Smith & Topin, 2017](https://arxiv.org/abs/1708.07120)
    """

    def __init__(
        self,
        peak_lr: float,
        total_steps: int,
        warmup_fraction: float = 0.25,
        warmup_steps: int | None = None,
        start_ratio: float = 25.0,
        final_ratio: float = 1e5,
    ) -> None:
        super().__init__(peak_lr, total_steps, warmup_fraction, warmup_steps)
        self.start_ratio = _checks.number(start_ratio, "start_ratio", minimum=1)
        self.final_ratio = _checks.number(final_ratio, "final_ratio", minimum=1)

    def rise(self, progress: Any) -> Any:
        return _cosine_between(1 / self.start_ratio, 1.0, progress)

    def fall(self, progress: Any) -> Any:
        return _cosine_between(1.0, 1 / self.final_ratio, progress)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "start_ratio": self.start_ratio,
            "final_ratio": self.final_ratio,
        }


@keras.saving.register_keras_serializable(package="keras_transfer")
class SlantedTriangular(RiseAndFall):
    """Short linear rise, long linear fall: `schedules.slanted_triangular` in the graph.

    Args:
        peak_lr: Learning rate at the top of the triangle. At least 0.
        total_steps: Length of the schedule, in optimizer steps. At least 1.
        warmup_fraction: Share of the steps spent rising, in (0, 1).
        warmup_steps: Steps spent rising, instead of `warmup_fraction`; below
            `total_steps`. 0 starts at the top, also where `total_steps` is 1.
        ratio: `peak_lr` divided by the lowest learning rate. At least 1.

    Call arguments:
        step: Optimizer step, counted from 0: a number, an integer tensor or a variable.

    Returns:
        The learning rate, float32.

    Raises:
        ValueError: If an argument is out of range, or if no step falls in the rise.

    Example:

    >>> from keras_transfer.schedules import SlantedTriangular
    >>> schedule = SlantedTriangular(0.01, total_steps=100)
    >>> [round(float(schedule(step)), 5) for step in (0, 10, 55, 100)]
    [0.00031, 0.01, 0.00516, 0.00031]

    Reference:
        - [Howard & Ruder, 2018](https://arxiv.org/abs/1801.06146), eq. 3
    """

    def __init__(
        self,
        peak_lr: float,
        total_steps: int,
        warmup_fraction: float = 0.1,
        warmup_steps: int | None = None,
        ratio: float = 32.0,
    ) -> None:
        super().__init__(peak_lr, total_steps, warmup_fraction, warmup_steps)
        self.ratio = _checks.number(ratio, "ratio", minimum=1)

    def rise(self, progress: Any) -> Any:
        return (1 + progress * (self.ratio - 1)) / self.ratio

    def fall(self, progress: Any) -> Any:
        return self.rise(1 - progress)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "ratio": self.ratio}


# Names as `Stage(schedule=...)` takes them, with the share of the steps spent rising.
_SHAPES: dict[str, tuple[Any, float]] = {
    "one_cycle": (OneCycle, 0.25),
    "slanted_triangular": (SlantedTriangular, 0.1),
    "warmup_cosine": (WarmupCosine, 0.1),
}


def shape_schedule(
    name: str, total_steps: int, warmup_steps: int | None = None, **params: Any
) -> keras.optimizers.schedules.LearningRateSchedule:
    """Makes the shape of a schedule: its peak is 1, to be multiplied by a learning rate.

    A stage may be a few steps long, so nothing here is too short: where the rise would
    take less than one step, or leave none for the fall, it is cut, and a schedule
    without a rise starts at its peak.

    Args:
        name: `"constant"`, `"one_cycle"`, `"slanted_triangular"` or `"warmup_cosine"`.
        total_steps: Length of the stage, in optimizer steps. At least 1.
        warmup_steps: Steps spent rising, at most `total_steps - 1` of which are used;
            `None` for the schedule's own share of `total_steps`.
        **params: Further arguments of the schedule's class, such as `final_ratio`.

    Returns:
        The schedule: float32 values between 0 and 1.

    Raises:
        ValueError: If there is no such schedule, or `"constant"` is given a rise.

    Example:

    >>> from keras_transfer.schedules import shape_schedule
    >>> shape = shape_schedule("slanted_triangular", total_steps=3)
    >>> [round(float(shape(step)), 3) for step in range(3)]
    [1.0, 0.677, 0.354]
    """
    _checks.choice(name, "name", ["constant", *_SHAPES])
    total_steps = _checks.integer(total_steps, "total_steps", minimum=1)
    if warmup_steps is not None:
        warmup_steps = _checks.integer(warmup_steps, "warmup_steps", minimum=0)
    if name == "constant":
        if warmup_steps or params:
            raise ValueError(
                "A constant schedule has no rise and no parameters. Received: "
                f"warmup_steps={warmup_steps}, {params}. Choose one of "
                f"{', '.join(map(repr, _SHAPES))}."
            )
        return Constant(1.0)
    schedule, warmup_fraction = _SHAPES[name]
    if warmup_steps is None:
        warmup_steps = functions.round_down(
            total_steps, params.pop("warmup_fraction", warmup_fraction)
        )
    warmup_steps = min(warmup_steps, total_steps - 1)
    return schedule(1.0, total_steps, warmup_steps=warmup_steps, **params)


def _cosine_between(start: float, end: float, progress: Any) -> Any:
    # (1 + cos x) / 2 loses its digits in float32 where it nears 0; cos(x / 2)**2 does not.
    share = ops.square(ops.cos(math.pi / 2 * progress))
    return start * share + end * (1 - share)
