"""Argument checks in the package's error form: what is wrong, what was received, what to do."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from typing import Any


def near_matches(name: object, options: Iterable[str], *, most: int = 3) -> list[str]:
    """Returns the options that a person who typed `name` may have meant, best first."""
    return difflib.get_close_matches(str(name), list(options), n=most, cutoff=0.5)


def did_you_mean(name: object, options: Iterable[str]) -> str:
    """Returns ` Did you mean 'x'?` for the nearest options, or an empty string."""
    matches = near_matches(name, options)
    return f" Did you mean {' or '.join(map(repr, matches))}?" if matches else ""


def integer(value: Any, name: str, *, minimum: int | None = None) -> int:
    """Checks a whole number; a float or a bool is a `TypeError`."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"`{name}` must be a whole number. Received: {name}={value!r}")
    whole = int(value)
    if minimum is not None and whole < minimum:
        raise ValueError(f"`{name}` must be at least {minimum}. Received: {name}={whole}")
    return whole


def number(
    value: Any,
    name: str,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> float:
    """Checks a finite number in a range; `above` and `below` exclude the bound itself."""
    if isinstance(value, bool | str | bytes) or not hasattr(value, "__float__"):
        raise TypeError(f"`{name}` must be a number. Received: {name}={value!r}")
    real = float(value)
    limits = []
    if minimum is not None:
        limits.append((real >= minimum, f"at least {minimum:g}"))
    if maximum is not None:
        limits.append((real <= maximum, f"at most {maximum:g}"))
    if above is not None:
        limits.append((real > above, f"above {above:g}"))
    if below is not None:
        limits.append((real < below, f"below {below:g}"))
    if not math.isfinite(real) or not all(ok for ok, _ in limits):
        wanted = " and ".join(["finite", *(text for _, text in limits)])
        raise ValueError(f"`{name}` must be {wanted}. Received: {name}={real:g}")
    return real


def choice(value: Any, name: str, options: Iterable[str]) -> str:
    """Checks that `value` is one of `options`; the error names a near match."""
    options = list(options)
    if value not in options:
        listed = ", ".join(map(repr, options))
        raise ValueError(
            f"`{name}` must be one of {listed}. Received: {name}={value!r}."
            f"{did_you_mean(value, options)}"
        )
    return str(value)


def known_keys(config: Iterable[str], known: Iterable[str], what: str) -> None:
    """Checks that a configuration holds no other keys than `what` (a stage, say) has arguments."""
    known = list(known)
    for key in config:
        if key not in known:
            raise ValueError(
                f"{what} has no argument {key!r}.{did_you_mean(key, known)} "
                f"Known arguments: {', '.join(known)}."
            )
