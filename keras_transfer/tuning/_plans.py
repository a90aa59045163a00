"""From a search space to a trial's values, and from these to its plan."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from keras_transfer.plan import Stage, UnfreezingPlan
from keras_transfer.tuning._parts import Choices, Fixed, Off, Part, Range, values_of

NO_DECAY_ON = ("norm", "bias")  # as in the recipes


def sample(parts: Mapping[str, Part], hp: Any, num_groups: int) -> dict[str, Any]:
    """Returns a trial's values; see `SearchSpace.sample`."""
    values: dict[str, Any] = {}

    def take(part: Part, name: str) -> None:
        value = part.sample(hp, name)
        if value is not None:  # off, or out of its conditional scope
            values[name] = value

    for name in ("head_lr", "lr_decay", "lr_spread"):
        take(parts[name], name)
    depth = _resolved_depth(parts["depth"], num_groups)
    take(depth, "depth")
    with _where(hp, "depth", depth, 2):
        take(parts["num_stages"], "num_stages")
        # A scope's parent has to lie in the scope around it: hence within the other.
        for number in range(2, max(values_of([parts["num_stages"]])) + 1):
            with _where(hp, "num_stages", parts["num_stages"], number):
                take(parts["stage_lr_ratio"], f"stage_{number}_lr_ratio")
                take(parts["stage_share"], f"stage_{number - 1}_share")
    take(parts["schedule"], "schedule")
    with _where_schedule_rises(hp, parts["schedule"]):
        take(parts["warmup_fraction"], "warmup_fraction")
    for name in ("weight_decay", "head_dropout", "batch_norm"):
        take(parts[name], name)
    return values


def _resolved_depth(part: Part, num_groups: int) -> Part:
    """Puts the number of groups in the place of "all"."""

    def resolve(value: Any) -> int:
        number = num_groups if value == math.inf else int(value)
        if number > num_groups:
            raise ValueError(
                f"The search space has depth={number}, and the model has {num_groups} layer "
                "groups, the head included. Lower `depth`, or split the backbone into more groups."
            )
        return number

    if isinstance(part, Range):
        low, high = resolve(part.low), resolve(part.high)
        return Fixed(low) if low == high else dataclasses.replace(part, low=low, high=high)
    if isinstance(part, Choices):
        found = tuple(dict.fromkeys(map(resolve, part.values)))
        return Fixed(found[0]) if len(found) == 1 else Choices(found)
    return part if isinstance(part, Off) else Fixed(resolve(part.value))


@contextlib.contextmanager
def _where(hp: Any, name: str, part: Part, at_least: int) -> Iterator[None]:
    """The scope of hyperparameters that matter where another is large enough."""
    if not part.is_tuned:
        yield
        return
    allowed = [value for value in values_of([part]) if value >= at_least]
    if not allowed:
        yield
        return
    with hp.conditional_scope(name, allowed):
        yield


@contextlib.contextmanager
def _where_schedule_rises(hp: Any, part: Part) -> Iterator[None]:
    rising = [value for value in values_of([part]) if value != "constant"]
    if not part.is_tuned or not rising:
        yield
        return
    with hp.conditional_scope("schedule", rising):
        yield


def plan_of(values: Mapping[str, Any], num_groups: int, epochs: int) -> UnfreezingPlan:
    """Returns the plan of a trial; see `SearchSpace.plan`."""
    deepest = int(values.get("depth", num_groups))
    count = min(int(values.get("num_stages", 1)), deepest)
    depths = _spread(deepest, count)
    shares = [values.get(f"stage_{number}_share") for number in range(1, count)]
    lengths = stage_lengths(epochs, count, shares)
    rates = _peak_rates(values, count)
    stages = []
    for depth, length, rate in zip(depths, lengths, rates, strict=True):
        if length == 0:
            continue
        schedule = values.get("schedule")
        fraction = None if schedule in (None, "constant") else values.get("warmup_fraction")
        stages.append(
            Stage(
                _name(depth, num_groups),
                depth="all" if depth == num_groups else depth,
                epochs=length,
                peak_lr=rate,
                lr_decay=_decay(values, num_groups),
                schedule=schedule,
                warmup_epochs=None if fraction is None else fraction * length,
            )
        )
    return UnfreezingPlan(stages, no_decay_on=NO_DECAY_ON)


def stage_lengths(epochs: int, count: int, shares: Sequence[float | None]) -> list[int]:
    """Divides epochs among stages; with fewer epochs than stages, the first get none.

    Args:
        epochs: Epochs in all, at least 1.
        count: Number of stages.
        shares: For each stage but the last, its share of what is left; `None` for as much as
            each of those that follow.
    """
    if epochs <= count:
        return [0] * (count - epochs) + [1] * epochs
    lengths = []
    left = epochs
    for number, share in enumerate(shares):
        following = count - 1 - number
        wanted = left * (1 / (following + 1) if share is None else share)
        lengths.append(min(max(1, math.floor(wanted + 0.5)), left - following))
        left -= lengths[-1]
    return [*lengths, left]


def _spread(deepest: int, count: int) -> list[int]:
    if count == 1:
        return [deepest]
    return [math.floor(1 + i * (deepest - 1) / (count - 1) + 0.5) for i in range(count)]


def _peak_rates(values: Mapping[str, Any], count: int) -> list[float | None]:
    rate = values.get("head_lr")
    rates = [rate]
    for number in range(2, count + 1):
        ratio = values.get(f"stage_{number}_lr_ratio", 1.0)
        rate = None if rate is None else rate * ratio
        rates.append(rate)
    return rates


def _decay(values: Mapping[str, Any], num_groups: int) -> float | None:
    if "lr_spread" in values:
        return float(values["lr_spread"] ** (-1 / max(1, num_groups - 1)))
    decay = values.get("lr_decay")
    return None if decay is None else float(decay)


def _name(depth: int, num_groups: int) -> str:
    if depth == num_groups:
        return "all"
    return "probe" if depth == 1 else f"top_{depth}"
