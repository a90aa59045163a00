"""What a layerwise experiment found: scores by copied layer groups, treatment and seed."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

from keras_transfer import _checks
from keras_transfer._tables import format_spread, format_table

TREATMENTS = ("AnB", "AnB+", "BnB", "BnB+")


@dataclasses.dataclass(frozen=True)
class LayerwiseScores:
    """Test scores of networks whose first `n` layer groups were copied.

    Made by `layerwise_transferability`; printing shows a table, and
    `keras_transfer.plotting.plot_layerwise` draws the paper's figure. How to read it:

    - AnB below BnB: the group and those before it are specific to the source task.
    - BnB below the base (n = 0): groups that have learnt together were parted there.
    - AnB+ above the base: starting from the source helps, though everything trains on.

    Args:
        metric: Name of the metric.
        mode: `"max"` where higher is better, else `"min"`.
        groups: Names of the backbone's layer groups, the stem first.
        seeds: The seeds, in the order of the scores.
        base: Scores of networks trained on the target task from scratch.
        scores: For each treatment and number of copied groups, the score of each seed.

    Raises:
        ValueError: If a treatment is unknown, or scores are missing or not finite.

    Example:

    >>> from keras_transfer.layerwise_scores import LayerwiseScores
    >>> found = LayerwiseScores(
    ...     metric="accuracy", mode="max", groups=("stem", "top"), seeds=(0, 1),
    ...     base=(0.80, 0.82), scores={"AnB": {1: (0.81, 0.83), 2: (0.70, 0.73)}})
    >>> print(found)
    n  last copied  AnB
    -  -----------  -------------
    0  -            0.810 ± 0.014
    1  stem         0.820 ± 0.014
    2  top          0.715 ± 0.021
    """

    metric: str
    mode: str
    groups: tuple[str, ...]
    seeds: tuple[int, ...]
    base: tuple[float, ...]
    scores: Mapping[str, Mapping[int, tuple[float, ...]]]

    def __post_init__(self) -> None:
        _checks.choice(self.mode, "mode", ["max", "min"])
        for name in ("groups", "seeds", "base"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        # JSON has no whole numbers for keys.
        scores = {
            _checks.choice(treatment, "treatment", TREATMENTS): {
                int(n): tuple(map(float, values)) for n, values in by_n.items()
            }
            for treatment, by_n in self.scores.items()
        }
        object.__setattr__(self, "scores", scores)
        for values in [self.base, *(v for by_n in scores.values() for v in by_n.values())]:
            if len(values) != len(self.seeds) or not all(map(math.isfinite, values)):
                raise ValueError(
                    f"There must be one finite score for each of the {len(self.seeds)} seeds. "
                    f"Received: {values}"
                )

    def at(self, treatment: str, n: int) -> tuple[float, ...]:
        """Returns the score of each seed.

        Args:
            treatment: `"AnB"`, `"AnB+"`, `"BnB"` or `"BnB+"`.
            n: Number of copied groups; 0 is the base, whatever the treatment.
        """
        _checks.choice(treatment, "treatment", self.scores)
        if n == 0:
            return self.base
        if n not in self.scores[treatment]:
            raise ValueError(
                f"There are no scores of {treatment} for n={n}. There are for "
                f"{', '.join(map(str, self.depths))}."
            )
        return self.scores[treatment][n]

    @property
    def depths(self) -> list[int]:
        """Numbers of copied groups, in order."""
        return sorted({n for by_n in self.scores.values() for n in by_n})

    def __str__(self) -> str:
        rows = [("n", "last copied", *self.scores)]
        for n in [0, *self.depths]:
            cells = [
                format_spread(self.at(treatment, n)) if n == 0 or n in by_n else "-"
                for treatment, by_n in self.scores.items()
            ]
            rows.append((str(n), "-" if n == 0 else self.groups[n - 1], *cells))
        return format_table(rows)

    def to_json(self, *, indent: int | None = 2) -> str:
        """Returns the scores as JSON."""
        return json.dumps(dataclasses.asdict(self), indent=indent)

    @classmethod
    def from_json(cls, text: str) -> LayerwiseScores:
        """Makes scores from `to_json`'s result."""
        try:
            config: dict[str, Any] = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"The scores are not valid JSON: {error}") from error
        _checks.known_keys(config, [f.name for f in dataclasses.fields(cls)], "Such a result")
        return cls(**config)
