"""The parts of a search space: a range, a choice, a fixed value, or nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

Check = Callable[[Any, str], Any]


@dataclasses.dataclass(frozen=True)
class Off:
    """A part that is not touched: what the model and the optimizer say, holds."""

    is_tuned = False

    def sample(self, hp: Any, name: str) -> None:
        """Returns nothing, and registers nothing."""

    def __str__(self) -> str:
        return "off"


@dataclasses.dataclass(frozen=True)
class Fixed:
    """A part with one value."""

    value: Any
    is_tuned = False

    def sample(self, hp: Any, name: str) -> Any:
        """Returns the value, and registers nothing."""
        return self.value

    def __str__(self) -> str:
        return f"always {_text(self.value)}"


@dataclasses.dataclass(frozen=True)
class Range:
    """A part that lies anywhere between two bounds, both included."""

    low: Any
    high: Any
    sampling: str
    is_tuned = True

    def sample(self, hp: Any, name: str) -> Any:
        """Returns the trial's value; registers the hyperparameter if need be."""
        make = hp.Int if isinstance(self.low, int) else hp.Float
        return make(name, self.low, self.high, sampling=self.sampling)

    def __str__(self) -> str:
        scale = ", log" if self.sampling == "log" else ""
        return f"{_text(self.low)} to {_text(self.high)}{scale}"


@dataclasses.dataclass(frozen=True)
class Choices:
    """A part that has one of several values."""

    values: tuple[Any, ...]
    is_tuned = True

    def sample(self, hp: Any, name: str) -> Any:
        """Returns the trial's value; registers the hyperparameter if need be."""
        return hp.Choice(name, list(self.values))

    def __str__(self) -> str:
        return " | ".join(map(_text, self.values))


Part = Off | Fixed | Range | Choices


def parse(
    given: Any,
    name: str,
    check: Check,
    *,
    sampling: str | None = "linear",
) -> Part:
    """Reads what the user wrote for a part.

    Args:
        given: `None` (off), a value, a pair `(low, high)`, or a list of values.
        name: The part's name.
        check: Checks one value and returns it.
        sampling: How a range is sampled, `"linear"` or `"log"`; `None` where the part has no
            order, and so no range.

    Raises:
        ValueError: If the range is upside down or empty, the list is empty, or a value is
            out of range.
    """
    if given is None:
        return Off()
    if isinstance(given, tuple):
        return _range(given, name, check, sampling)
    if isinstance(given, list):
        if not given:
            raise ValueError(
                f"`{name}` is an empty list. Name at least two values, or write {name}=None to "
                "leave it alone."
            )
        values = tuple(dict.fromkeys(check(one, name) for one in given))
        return Fixed(values[0]) if len(values) == 1 else Choices(values)
    return Fixed(check(given, name))


def _range(given: tuple[Any, ...], name: str, check: Check, sampling: str | None) -> Part:
    if sampling is None:
        raise TypeError(
            f"`{name}` has no order, so it cannot be a range. Write a list of values: "
            f"{name}={list(given)!r}."
        )
    if len(given) != 2:
        raise ValueError(
            f"A range is a pair `(low, high)`, and a list is a choice. Received: {name}={given!r}"
        )
    low, high = (check(one, name) for one in given)
    if low == high:
        raise ValueError(
            f"The range of `{name}` holds one value. Write {name}={low!r} to fix it. "
            f"Received: {name}={given!r}"
        )
    if low > high:
        raise ValueError(
            f"The range of `{name}` is upside down. Received: {name}={given!r}. Write "
            f"({given[1]!r}, {given[0]!r})."
        )
    if sampling == "log" and low <= 0:
        raise ValueError(
            f"The range of `{name}` is sampled on a log scale, so it must begin above 0. "
            f"Received: {name}={given!r}"
        )
    return Range(low, high, sampling)


def config_of(part: Part) -> Any:
    """Returns a part as plain data, ready for JSON."""
    return {type(part).__name__: {k: _plain(v) for k, v in dataclasses.asdict(part).items()}}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def values_of(parts: Iterable[Any]) -> list[Any]:
    """Returns the values that a part of whole numbers may take, in order."""
    found: list[Any] = []
    for part in parts:
        if isinstance(part, Range):
            found.extend(range(part.low, part.high + 1))
        elif isinstance(part, Choices):
            found.extend(part.values)
        elif isinstance(part, Fixed):
            found.append(part.value)
    return found


def largest(part: Part, default: float) -> float:
    """Returns the largest value that a part of numbers may take, `default` where it is off."""
    if isinstance(part, Range):
        return float(part.high)
    if isinstance(part, Choices):
        return float(max(part.values))
    return float(part.value) if isinstance(part, Fixed) else default
