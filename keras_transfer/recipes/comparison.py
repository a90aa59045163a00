"""What a comparison of strategies found: scores, paired differences, and a verdict."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from keras_transfer import _checks
from keras_transfer._student_t import t_quantile
from keras_transfer._tables import format_spread, format_table

SCRATCH = "scratch"
HELPS = "helps"
NO_DIFFERENCE = "makes no difference"
HURTS = "hurts"
CANNOT_TELL = "cannot tell"


@dataclasses.dataclass(frozen=True)
class PairedDifference:
    """How much better a strategy is than training from scratch, seed by seed.

    Attributes:
        mean: Mean gain in units of the metric; above 0 is better than from scratch.
        low: Lower end of the confidence interval; minus infinity for one seed.
        high: Upper end of the confidence interval; infinity for one seed.
        verdict: `"helps"`, `"makes no difference"`, `"hurts"` or `"cannot tell"`.
    """

    mean: float
    low: float
    high: float
    verdict: str

    @property
    def half_width(self) -> float:
        """Half the width of the interval: the `y` of `x ± y`."""
        return (self.high - self.low) / 2


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Scores of strategies over the same seeds, and whether transfer helps.

    Made by `compare`; printing shows a table and the verdict. The scores of one seed are
    a pair: same examples, same order, same new head. So the difference to training from
    scratch is taken seed by seed, and its confidence interval is that of a paired t-test.
    The intervals of all strategies hold together (Bonferroni): several are looked at, and
    the best of them would otherwise look better than it is.

    What is uncertain here is what changes with the seed. How well the test examples stand
    for others is not in the interval.

    Args:
        metric: Name of the metric.
        mode: `"max"` where higher is better, else `"min"`.
        seeds: The seeds, in the order of the scores.
        scores: The test score of each seed, for each strategy; `"scratch"` is one.
        seconds: Training time of each seed, for each strategy.
        margin: Differences within plus or minus this do not count, in units of the metric.
        confidence: Probability that all intervals hold, in (0, 1).

    Raises:
        ValueError: If there is no strategy `"scratch"`, or scores are missing or not finite.

    Example:

    >>> from keras_transfer.recipes import Comparison
    >>> found = Comparison(
    ...     metric="accuracy", mode="max", seeds=(0, 1, 2),
    ...     scores={"scratch": (0.70, 0.72, 0.71), "lp_ft": (0.80, 0.83, 0.81)},
    ...     seconds={"scratch": (3.0, 3.0, 3.0), "lp_ft": (2.0, 2.0, 2.0)})
    >>> found.verdict
    'helps'
    >>> print(found)
    strategy  accuracy       gain over scratch        time    verdict
    --------  -------------  -----------------------  ------  -------
    scratch   0.710 ± 0.010  -                        3.00 s  -
    lp_ft     0.813 ± 0.015  +0.103 [+0.089, +0.118]  2.00 s  helps
    Transfer helps by 0.103 ± 0.014 (lp_ft against scratch; 3 seeds, 95% confidence).
    """

    metric: str
    mode: str
    seeds: tuple[int, ...]
    scores: Mapping[str, tuple[float, ...]]
    seconds: Mapping[str, tuple[float, ...]]
    margin: float = 0.01
    confidence: float = 0.95

    def __post_init__(self) -> None:
        _checks.choice(self.mode, "mode", ["max", "min"])
        self._set("margin", _checks.number(self.margin, "margin", minimum=0))
        confidence = _checks.number(self.confidence, "confidence", above=0, below=1)
        self._set("confidence", confidence)
        self._set("seeds", tuple(self.seeds))
        for name in ("scores", "seconds"):
            self._set(name, {k: tuple(map(float, v)) for k, v in getattr(self, name).items()})
        if SCRATCH not in self.scores or len(self.scores) < 2:
            raise ValueError(
                f"`scores` must hold {SCRATCH!r} and at least one strategy to compare with it. "
                f"Received: {', '.join(map(repr, self.scores)) or 'none'}"
            )
        for name, values in self.scores.items():
            if len(values) != len(self.seeds) or len(self.seconds.get(name, ())) != len(values):
                raise ValueError(
                    f"Strategy {name!r} must have one score and one time for each seed. Received: "
                    f"{len(values)} scores, {len(self.seconds.get(name, ()))} times, "
                    f"{len(self.seeds)} seeds"
                )
            if not all(map(math.isfinite, values)):
                raise ValueError(
                    f"Scores must be finite. Received: {self.metric} of {name!r}: {values}"
                )

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    @property
    def strategies(self) -> list[str]:
        """The strategies that transfer: all but `"scratch"`."""
        return [name for name in self.scores if name != SCRATCH]

    def difference(self, strategy: str) -> PairedDifference:
        """Returns how much better a strategy is than training from scratch.

        Args:
            strategy: Name of a strategy other than `"scratch"`.

        Raises:
            ValueError: If there is no such strategy.
        """
        _checks.choice(strategy, "strategy", self.strategies)
        sign = 1.0 if self.mode == "max" else -1.0
        gains = sign * (np.array(self.scores[strategy]) - np.array(self.scores[SCRATCH]))
        mean, half = float(gains.mean()), math.inf
        if gains.size > 1:
            # Two tails, and as many intervals as strategies.
            tail = (1 - self.confidence) / 2 / len(self.strategies)
            error = float(gains.std(ddof=1)) / math.sqrt(gains.size)
            half = t_quantile(1 - tail, gains.size - 1) * error
        low, high = mean - half, mean + half
        return PairedDifference(mean, low, high, self._judge(low, high))

    def _judge(self, low: float, high: float) -> str:
        if -self.margin <= low and high <= self.margin:
            return NO_DIFFERENCE
        if low > 0:
            return HELPS
        return HURTS if high < 0 else CANNOT_TELL

    @property
    def best(self) -> str:
        """The strategy with the highest mean gain over training from scratch."""
        return max(self.strategies, key=lambda name: self.difference(name).mean)

    @property
    def verdict(self) -> str:
        """Whether transfer helps, judged by what each strategy does.

        `"helps"` if any strategy does; `"hurts"` if every one does (negative transfer);
        `"makes no difference"` if some make none and no other might help; else
        `"cannot tell"`.
        """
        found = {self.difference(name).verdict for name in self.strategies}
        if HELPS in found:
            return HELPS
        if CANNOT_TELL in found:
            return CANNOT_TELL
        return NO_DIFFERENCE if NO_DIFFERENCE in found else HURTS

    @property
    def conclusion(self) -> str:
        """The verdict as a sentence, with its numbers."""
        kinds = {name: self.difference(name).verdict for name in self.strategies}
        wanted = [name for name, verdict in kinds.items() if verdict == self.verdict]
        name = max(wanted, key=lambda one: self.difference(one).mean)
        gain = self.difference(name)
        seeds = "1 seed" if len(self.seeds) == 1 else f"{len(self.seeds)} seeds"
        basis = f"{name} against scratch; {seeds}, {self.confidence:.0%} confidence"
        if len(self.strategies) > 1:
            basis += f" for all {len(self.strategies)} strategies together"
        number, error = f"{gain.mean:.3f}", f"{gain.half_width:.3f}"
        if self.verdict == HELPS:
            return f"Transfer helps by {number} ± {error} ({basis})."
        if self.verdict == HURTS:
            best = "even the best strategy, " if len(self.strategies) > 1 else ""
            return f"Transfer hurts by {-gain.mean:.3f} ± {error} ({best}{basis})."
        if self.verdict == NO_DIFFERENCE:
            return (
                f"Transfer makes no difference: {number} ± {error}, within the margin of "
                f"{self.margin:g} ({basis})."
            )
        if len(self.seeds) == 1:
            return (
                f"Cannot tell whether transfer helps: one seed has no spread to judge {number} by "
                f"({name} against scratch). Use 5 seeds or more."
            )
        return f"Cannot tell whether transfer helps: {number} ± {error} ({basis}). Use more seeds."

    def __str__(self) -> str:
        rows = [("strategy", self.metric, f"gain over {SCRATCH}", "time", "verdict")]
        for name, values in self.scores.items():
            gain, verdict = "-", "-"
            if name != SCRATCH:
                found = self.difference(name)
                verdict = found.verdict
                gain = f"{found.mean:+.3f}"
                if len(values) > 1:
                    gain += f" [{found.low:+.3f}, {found.high:+.3f}]"
            seconds = f"{np.mean(self.seconds[name]):.2f} s"
            rows.append((name, format_spread(values), gain, seconds, verdict))
        return f"{format_table(rows)}\n{self.conclusion}"

    def get_config(self) -> dict[str, Any]:
        """Returns the comparison as a dictionary of plain values."""
        return {
            **dataclasses.asdict(self),
            "seeds": list(self.seeds),
            "scores": {name: list(values) for name, values in self.scores.items()},
            "seconds": {name: list(values) for name, values in self.seconds.items()},
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Comparison:
        """Makes a comparison from `get_config`'s result."""
        if not isinstance(config, Mapping):
            raise TypeError(f"A comparison's config must be a mapping. Received: {config!r}")
        _checks.known_keys(config, [f.name for f in dataclasses.fields(cls)], "A comparison")
        return cls(**config)

    def to_json(self, *, indent: int | None = 2) -> str:
        """Returns the comparison as JSON, to be kept beside the model."""
        return json.dumps(self.get_config(), indent=indent)

    @classmethod
    def from_json(cls, text: str) -> Comparison:
        """Makes a comparison from `to_json`'s result."""
        try:
            config = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"The comparison is not valid JSON: {error}") from error
        return cls.from_config(config)
