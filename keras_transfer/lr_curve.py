"""What an LR range test measured, and the learning rates that can be read off it."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from keras_transfer import _checks
from keras_transfer.lr_rules import RULES, Array, largest_fall, smooth, until_not_finite

# What fastai drops: the start of the average, and the divergence.
_FIRST_SHARE_DROPPED = 0.1
_LAST_POINTS_DROPPED = 5
_FEWEST_POINTS = 10

# The smoothed loss must fall by this many of its own standard deviations. In 99 of 100
# curves of white noise (100 to 1,000 steps, smoothing 0 to 0.95) it falls by less.
_LEAST_FALL = 8.0


@dataclasses.dataclass(frozen=True)
class LRCurve:
    """The loss of each batch while the learning rate grew: the result of `find_lr`.

    Args:
        learning_rates: Base learning rate (the head's) of each step, growing.
        losses: Loss of that step's batch, before the step. The last may be infinite or
            NaN.
        smoothing: Share of the past in the smoothed loss, in [0, 1).
        diverged: Whether the test stopped because the loss diverged.
        stage: Name of the stage that the model was in, if it was in one.

    Raises:
        ValueError: If the lengths differ or the learning rates do not grow.

    Example:

    >>> import numpy as np
    >>> from keras_transfer.lr_curve import LRCurve
    >>> rates = np.geomspace(1e-5, 1, 100)
    >>> losses = 2.0 - rates / (rates + 1e-2) + (rates / 0.3) ** 4
    >>> curve = LRCurve(rates, losses)
    >>> 1e-3 < curve.suggestion < 1e-1
    True
    >>> LRCurve.from_json(curve.to_json()) == curve
    True

    Reference:
        - [Smith, 2017](https://arxiv.org/abs/1506.01186), section 3.3, the LR range test
    """

    learning_rates: Sequence[float]
    losses: Sequence[float]
    _: dataclasses.KW_ONLY
    smoothing: float = 0.9
    diverged: bool = False
    stage: str | None = None

    def __post_init__(self) -> None:
        rates = _numbers(self.learning_rates, "learning_rates")
        losses = _numbers(self.losses, "losses")
        if not isinstance(self.diverged, bool | np.bool_):
            raise TypeError(
                f"`diverged` must be True or False. Received: diverged={self.diverged!r}"
            )
        if self.stage is not None and not isinstance(self.stage, str):
            raise TypeError(f"`stage` must be a string or None. Received: stage={self.stage!r}")
        object.__setattr__(self, "diverged", bool(self.diverged))
        object.__setattr__(self, "learning_rates", rates)
        object.__setattr__(self, "losses", losses)
        object.__setattr__(
            self, "smoothing", _checks.number(self.smoothing, "smoothing", minimum=0, below=1)
        )
        if len(rates) != len(losses):
            raise ValueError(
                "An LR curve needs one loss for each learning rate. "
                f"Received: {len(rates)} learning rates, {len(losses)} losses"
            )
        if not rates:
            raise ValueError("An LR curve needs at least one point. Received: learning_rates=[]")
        finite = all(math.isfinite(rate) and rate > 0 for rate in rates)
        if not finite or any(low >= high for low, high in itertools.pairwise(rates)):
            raise ValueError(
                "`learning_rates` must be above 0, finite and growing. "
                f"Received: learning_rates={_shorten(rates)}"
            )

    @property
    def smoothed_losses(self) -> tuple[float, ...]:
        """The losses, smoothed by an exponential moving average; stops before infinity."""
        finite = until_not_finite(np.asarray(self.losses))
        return tuple(smooth(finite, self.smoothing).tolist())

    @property
    def suggestion(self) -> float:
        """The learning rate that the rule `valley` suggests.

        Raises:
            ValueError: If the curve does not tell; the message says what to change.
        """
        return self.suggest("valley")

    def suggest(self, rule: str | Callable[[Array, Array], float] = "valley") -> float:
        """Reads a learning rate off the curve.

        The first tenth of the points (warm-up of the average) and the last five
        (divergence) are left out, as fastai does.

        Args:
            rule: `"valley"` (the middle of the longest fall), `"steep"` (where the loss
                falls fastest), `"minimum"` (a tenth of the rate with the lowest loss),
                `"slide"` (before the loss begins to rise), or a function of learning
                rates and smoothed losses.

        Returns:
            A base learning rate.

        Raises:
            ValueError: If there are too few points, the loss does not fall by more than
                its noise, or the rule finds nothing; the message says what to change.
        """
        name = rule if isinstance(rule, str) else None
        if not callable(rule):
            rule = RULES[_checks.choice(rule, "rule", RULES)]
        rates, smoothed = self._usable_points()
        self._check_fall(smoothed)
        lowest_is_last = int(np.argmin(smoothed)) == len(smoothed) - 1
        if name in ("minimum", "slide") and lowest_is_last and not self._ends_in_divergence:
            raise ValueError(
                f"The loss still falls at the largest learning rate tried, and rule {name!r} "
                f"needs to see it rise. Raise `max_lr` (now {self.learning_rates[-1]:.1e}), or "
                "use the rule 'valley'."
            )
        return float(rule(rates, smoothed))

    @property
    def _ends_in_divergence(self) -> bool:
        return self.diverged or len(self.smoothed_losses) < len(self.losses)

    def _usable_points(self) -> tuple[Array, Array]:
        smoothed = np.asarray(self.smoothed_losses)
        start = int(len(smoothed) * _FIRST_SHARE_DROPPED)
        stop = max(len(smoothed) - _LAST_POINTS_DROPPED, start)
        if stop - start < _FEWEST_POINTS:
            raise ValueError(
                f"The LR curve has {len(smoothed)} points before "
                f"{'the loss diverged' if self._ends_in_divergence else 'its end'}, of which "
                f"{stop - start} can be used; a suggestion needs {_FEWEST_POINTS}. "
                + (
                    f"Lower `min_lr` (now {self.learning_rates[0]:.1e}), or take more steps."
                    if self._ends_in_divergence
                    else "Take more steps: 100 is usual."
                )
            )
        return np.asarray(self.learning_rates)[start:stop], smoothed[start:stop]

    def _check_fall(self, smoothed: Array) -> None:
        least = max(_LEAST_FALL * self._noise(), 1e-6 * abs(float(smoothed[0])))
        if largest_fall(smoothed) > least:
            return
        lowest, highest = f"{self.learning_rates[0]:.1e}", f"{self.learning_rates[-1]:.1e}"
        rises = largest_fall(-smoothed) > least
        if self._ends_in_divergence or rises:
            raise ValueError(
                f"The loss {'rises' if rises else 'diverges'} without falling by more than its "
                f"noise before. Lower `min_lr` (now {lowest}), or take more steps or larger "
                "batches."
            )
        raise ValueError(
            f"The loss changes by no more than its noise up to a learning rate of {highest}. "
            "Raise `max_lr`, or take more steps or larger batches."
        )

    def _noise(self) -> float:
        """Returns the standard deviation that the batches' noise leaves in the smoothed loss."""
        losses = until_not_finite(np.asarray(self.losses))
        # Differences of neighbours see the noise and not the curve; their median does not
        # see the divergence.
        between = np.abs(np.diff(losses))
        deviation = float(np.median(between)) / 0.6745 / math.sqrt(2) if len(between) else 0.0
        return deviation * math.sqrt((1 - self.smoothing) / (1 + self.smoothing))

    def to_json(self) -> str:
        """Returns the curve as JSON; losses that are not finite become strings."""
        losses = [loss if math.isfinite(loss) else str(loss) for loss in self.losses]
        return json.dumps({**dataclasses.asdict(self), "losses": losses}, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> LRCurve:
        """Makes a curve from `to_json`'s result; an unknown key is an error."""
        try:
            config = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"The LR curve is not valid JSON: {error}") from error
        known = [field.name for field in dataclasses.fields(cls)]
        if not isinstance(config, Mapping):
            raise TypeError(f"An LR curve is a JSON object. Received: {text[:60]!r}")
        for key in config:
            if key not in known:
                raise ValueError(
                    f"An LR curve has no argument {key!r}.{_checks.did_you_mean(key, known)} "
                    f"Known arguments: {', '.join(known)}."
                )
        for key in ("learning_rates", "losses"):
            if key not in config:
                raise ValueError(f"An LR curve needs `{key}`. Received: {', '.join(config)}")
        return cls(**config)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, LRCurve):
            return NotImplemented
        # A curve that ended in NaN equals its copy, though NaN does not equal itself.
        return self.to_json() == other.to_json()

    def __hash__(self) -> int:
        return hash(self.to_json())

    def __str__(self) -> str:
        rates, losses, smoothed = self.learning_rates, self.losses, self.smoothed_losses
        where = f" in stage {self.stage!r}" if self.stage else ""
        end = ", stopped when the loss diverged" if self.diverged else ""
        lines = [
            f"LR curve{where}: {len(rates)} steps, {rates[0]:.1e} to {rates[-1]:.1e}{end}",
            f"{'learning rate':>13}  {'loss':>10}  {'smoothed':>10}",
        ]
        for i in np.unique(np.linspace(0, len(rates) - 1, 9).round().astype(int)):
            value = f"{smoothed[i]:10.4g}" if i < len(smoothed) else " " * 9 + "-"
            lines.append(f"{rates[i]:13.1e}  {losses[i]:10.4g}  {value}")
        try:
            lines.append(f"suggestion (valley): {self.suggestion:.1e}")
        except ValueError as error:
            lines.append(f"no suggestion: {error}")
        return "\n".join(lines)


def _numbers(values: Any, name: str) -> tuple[float, ...]:
    try:
        return tuple(float(value) for value in values)
    except (TypeError, ValueError):
        raise TypeError(
            f"`{name}` must be a list of numbers. Received: {name}={str(values)[:60]}"
        ) from None


def _shorten(values: Sequence[float]) -> str:
    shown = ", ".join(f"{value:g}" for value in values[:4])
    return f"[{shown}, ...]" if len(values) > 4 else f"[{shown}]"
