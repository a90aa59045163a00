"""What `transfer_weights` did, weight by weight: a table to print and JSON to keep."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from typing import Any

from keras_transfer import _checks

STATUSES = ("copied", "partial", "skipped", "kept")


@dataclasses.dataclass(frozen=True)
class TransferredWeight:
    """What happened to one weight of the target.

    Args:
        path: The target's weight.
        source_path: The source's weight, or `None` where there is none.
        status: `"copied"`; `"partial"` (part of it, or with another shape);
            `"skipped"` (it does not fit, and mismatches were allowed); `"kept"`
            (the mapping does not name it).
        reason: Why, in words.
        parameters: Number of values in the weight.
        copied_parameters: How many of them now come from the source.
    """

    path: str
    source_path: str | None
    status: str
    reason: str
    parameters: int
    copied_parameters: int

    def __post_init__(self) -> None:
        _checks.choice(self.status, "status", STATUSES)


@dataclasses.dataclass(frozen=True)
class TransferReport:
    """What `transfer_weights` copied, skipped and why.

    `print(report)` shows a table of everything that was not simply copied;
    `report.table(every=True)` has a row for each weight.

    Args:
        source: What the weights came from.
        target: Name of the model they went to.
        weights: One entry for each weight of the target, in layer order.
        unused: The source's weights that went nowhere.

    Example:

    >>> from keras_transfer.weights import TransferReport, TransferredWeight
    >>> report = TransferReport(
    ...     source="file 'old.keras'",
    ...     target="model",
    ...     weights=(
    ...         TransferredWeight("conv/kernel", "conv/0", "copied", "same path", 27, 27),
    ...         TransferredWeight("head/kernel", None, "skipped", "not in the source", 9, 0),
    ...     ),
    ... )
    >>> print(report)
    27 of 36 parameters (75.0%) of 'model' now come from file 'old.keras'.
    copied 1, partial 0, skipped 1, kept 0; 0 weights of the source unused.
    status   weight       from  parameters  why
    skipped  head/kernel  -         0 of 9  not in the source
    >>> TransferReport.from_json(report.to_json()) == report
    True
    """

    source: str
    target: str
    weights: tuple[TransferredWeight, ...]
    unused: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", tuple(self.weights))
        object.__setattr__(self, "unused", tuple(self.unused))

    def with_status(self, status: str) -> tuple[TransferredWeight, ...]:
        """Returns the entries with that status: `"copied"`, `"partial"`, `"skipped"`, `"kept"`."""
        _checks.choice(status, "status", STATUSES)
        return tuple(weight for weight in self.weights if weight.status == status)

    @property
    def copied_parameters(self) -> int:
        """Number of the target's parameters that now come from the source."""
        return sum(weight.copied_parameters for weight in self.weights)

    @property
    def total_parameters(self) -> int:
        """Number of the target's parameters."""
        return sum(weight.parameters for weight in self.weights)

    @property
    def copied_share(self) -> float:
        """Share of the target's parameters that now come from the source, 0 to 1."""
        return self.copied_parameters / max(self.total_parameters, 1)

    def table(self, *, every: bool = False) -> str:
        """Returns the entries as an aligned text table.

        Args:
            every: Whether weights that were simply copied have a row too.
        """
        rows = [("status", "weight", "from", "parameters", "why")]
        for weight in self.weights:
            if every or weight.status != "copied":
                share = f"{weight.copied_parameters:,} of {weight.parameters:,}"
                rows.append(
                    (weight.status, weight.path, weight.source_path or "-", share, weight.reason)
                )
        if len(rows) == 1:
            return ""
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        lines = []
        for row in rows:
            cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
            cells[3] = row[3].rjust(widths[3])
            lines.append("  ".join([*cells, row[4]]).rstrip())
        return "\n".join(lines)

    def __str__(self) -> str:
        counts = ", ".join(f"{status} {len(self.with_status(status))}" for status in STATUSES)
        summary = (
            f"{self.copied_parameters:,} of {self.total_parameters:,} parameters "
            f"({self.copied_share:.1%}) of {self.target!r} now come from {self.source}.\n"
            f"{counts}; {len(self.unused)} weights of the source unused."
        )
        table = self.table()
        return f"{summary}\n{table}" if table else summary

    def get_config(self) -> dict[str, Any]:
        """Returns the report as a dictionary of plain values."""
        config = dataclasses.asdict(self)
        config["weights"] = list(config["weights"])
        config["unused"] = list(config["unused"])
        return config

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> TransferReport:
        """Makes a report from `get_config`'s result."""
        if not isinstance(config, Mapping) or not isinstance(config.get("weights"), Iterable):
            raise ValueError(f"A report's config must hold `weights`, a list. Received: {config!r}")
        weights = tuple(TransferredWeight(**weight) for weight in config["weights"])
        return cls(**{**config, "weights": weights})

    def to_json(self, *, indent: int | None = 2) -> str:
        """Returns the report as JSON, to be kept beside the model."""
        return json.dumps(self.get_config(), indent=indent)

    @classmethod
    def from_json(cls, text: str) -> TransferReport:
        """Makes a report from `to_json`'s result."""
        try:
            config = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"The report is not valid JSON: {error}") from error
        return cls.from_config(config)
