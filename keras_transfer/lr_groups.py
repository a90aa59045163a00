"""Discriminative learning rates as plain numbers: one multiplier for each layer group."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from keras_transfer import _checks, _patterns


def group_multipliers(
    group_names: Sequence[str],
    *,
    lr_decay: float | None = None,
    rates: Mapping[str, float] | None = None,
    training: Iterable[str] | None = None,
) -> dict[str, float]:
    """What each layer group's learning rate is of the base rate.

    Say it by `lr_decay`, by `rates`, or not at all (1 for every group). The distance
    from the head is counted over all groups, so a group's rate does not change when
    another is unfrozen.

    Args:
        group_names: Names of the layer groups, stem first, head last.
        lr_decay: Each group's rate is the next group's times this, in (0, 1]; the head's
            is the base rate. ULMFiT's division by 2.6 is 0.385.
        rates: Multiplier, at least 0, for each name or pattern of groups. Patterns are
            matched whole (`re.fullmatch`); `"stem"` and `"head"` name the first and the
            last group. Groups that nothing matches get 1.
        training: Names of the groups that train; the others have no rate. `None` for all.

    Returns:
        The multiplier of each group that trains, stem first.

    Raises:
        ValueError: If a number is out of range, a pattern matches no group, or two
            patterns match one.

    Example:

    >>> from keras_transfer.lr_groups import group_multipliers
    >>> group_multipliers(["conv1", "conv2", "top"], lr_decay=0.5)
    {'conv1': 0.25, 'conv2': 0.5, 'top': 1.0}
    >>> group_multipliers(["conv1", "conv2", "top"], rates={"conv.*": 0.1}, training=["conv2"])
    {'conv2': 0.1}

    Reference:
        - [Howard & Ruder, 2018](https://arxiv.org/abs/1801.06146), section 3.2
    """
    names = _group_names(group_names)
    if lr_decay is not None and rates is not None:
        raise ValueError(
            "Give `lr_decay` or `rates`, not both. "
            f"Received: lr_decay={lr_decay}, rates={dict(rates)}"
        )
    if rates is not None:
        multipliers = _from_rates(names, rates)
    else:
        decay = 1.0 if lr_decay is None else lr_decay
        decay = _checks.number(decay, "lr_decay", above=0, maximum=1)
        multipliers = {name: decay ** (len(names) - 1 - i) for i, name in enumerate(names)}
    if training is None:
        return multipliers
    if isinstance(training, str):
        raise TypeError(
            f"`training` must be a collection of group names. Received: training={training!r}"
        )
    training = set(training)
    for name in sorted(training):
        if name not in multipliers:
            raise ValueError(_patterns.unknown_group(name, names, _patterns.stem_and_head(names)))
    return {name: multiplier for name, multiplier in multipliers.items() if name in training}


def spread_to_decay(spread: float, n_groups: int) -> float:
    """Turns the spread of rates between head and stem into an `lr_decay`.

    Args:
        spread: The head's learning rate divided by the stem's. At least 1. fastai's
            `lr_mult`, by default 100; ULMFiT's five groups have about 46.
        n_groups: How many layer groups there are, head and stem among them. At least 1.

    Returns:
        The `lr_decay` that gives this spread, in (0, 1]; 1 where there is one group.

    Raises:
        ValueError: If an argument is out of range.

    Example:

    >>> from keras_transfer.optimizers import spread_to_decay
    >>> round(spread_to_decay(100, n_groups=5), 3)
    0.316

    Reference:
        - [Howard & Ruder, 2018](https://arxiv.org/abs/1801.06146), section 3.2
    """
    spread = _checks.number(spread, "spread", minimum=1)
    n_groups = _checks.integer(n_groups, "n_groups", minimum=1)
    if n_groups == 1:
        return 1.0
    return float(spread ** (-1.0 / (n_groups - 1)))


def _group_names(group_names: Sequence[str]) -> list[str]:
    names = [group_names] if isinstance(group_names, str) else list(group_names)
    if not names:
        raise ValueError("`group_names` names no layer group. Received: group_names=[]")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(
            f"Layer groups must have different names. Received twice: {', '.join(map(repr, twice))}"
        )
    return names


def _from_rates(names: list[str], rates: Mapping[str, float]) -> dict[str, float]:
    if not isinstance(rates, Mapping):
        raise TypeError(
            "`rates` must map names or patterns of layer groups to multipliers. "
            f"Received: rates={rates!r}"
        )
    multipliers = dict.fromkeys(names, 1.0)
    for name, pattern in _patterns.claim_groups(
        rates, names, _patterns.stem_and_head(names)
    ).items():
        multipliers[name] = _checks.number(rates[pattern], f"rates[{pattern!r}]", minimum=0)
    return multipliers
