"""A ranking of backbones by transferability score, as plain data."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

from keras_transfer import _checks
from keras_transfer._tables import format_table


@dataclasses.dataclass(frozen=True)
class RankedBackbone:
    """What the features of one backbone scored.

    Args:
        name: What the candidate is called.
        scores: Each score, by its name.
        seconds: Time of the pass over the data, in seconds; next to nothing where the
            features were kept already.
        parameters: Number of the backbone's parameters.
        features: Width of its pooled features.
    """

    name: str
    scores: Mapping[str, float]
    seconds: float
    parameters: int
    features: int


@dataclasses.dataclass(frozen=True)
class BackboneRanking:
    """Backbones and their transferability scores, the best first.

    Made by `keras_transfer.rank_backbones`; printing shows a table, and
    `keras_transfer.plotting.plot_ranking` draws it.

    Args:
        rank_by: Name of the score that decides.
        backbones: The backbones; they are put in order.

    Raises:
        ValueError: If a backbone has not this score, or one that is not finite.

    Example:

    >>> from keras_transfer.transferability import BackboneRanking, RankedBackbone
    >>> ranking = BackboneRanking("log_me", (
    ...     RankedBackbone("small", {"log_me": -0.3}, 1.5, 2_000_000, 1280),
    ...     RankedBackbone("large", {"log_me": -0.1}, 4.0, 24_000_000, 2048)))
    >>> ranking.best
    'large'
    >>> print(ranking)
    backbone  log_me  time    parameters  features
    --------  ------  ------  ----------  --------
    large     -0.100  4.00 s  24,000,000  2048
    small     -0.300  1.50 s  2,000,000   1280
    """

    rank_by: str
    backbones: tuple[RankedBackbone, ...]

    def __post_init__(self) -> None:
        if not self.backbones:
            raise ValueError("A ranking needs at least one backbone. Received: none")
        known = list(self.backbones[0].scores)
        for one in self.backbones:
            _checks.choice(self.rank_by, "rank_by", one.scores)
            if list(one.scores) != known or not all(map(math.isfinite, one.scores.values())):
                raise ValueError(
                    f"Every backbone must have finite scores {', '.join(known)}. Received: "
                    f"{dict(one.scores)} of {one.name!r}"
                )
        order = sorted(self.backbones, key=lambda one: one.scores[self.rank_by], reverse=True)
        object.__setattr__(self, "backbones", tuple(order))

    @property
    def best(self) -> str:
        """Name of the backbone with the highest score."""
        return self.backbones[0].name

    def __str__(self) -> str:
        rows = [("backbone", *self.backbones[0].scores, "time", "parameters", "features")]
        for one in self.backbones:
            scores = [f"{value:.3f}" for value in one.scores.values()]
            size = f"{one.parameters:,}"
            rows.append((one.name, *scores, f"{one.seconds:.2f} s", size, str(one.features)))
        return format_table(rows)

    def to_json(self, *, indent: int | None = 2) -> str:
        """Returns the ranking as JSON."""
        return json.dumps(dataclasses.asdict(self), indent=indent)

    @classmethod
    def from_json(cls, text: str) -> BackboneRanking:
        """Makes a ranking from `to_json`'s result."""
        try:
            config: dict[str, Any] = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"The ranking is not valid JSON: {error}") from error
        _checks.known_keys(config, ["rank_by", "backbones"], "A ranking")
        return cls(config["rank_by"], tuple(RankedBackbone(**one) for one in config["backbones"]))
