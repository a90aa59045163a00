"""How names and patterns stand for layer groups and layers; plain text, no Keras."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from keras_transfer import _checks

_NO_DECAY_RULES = "`no_decay_on` must hold 'norm', 'bias' or regular expressions on variable paths"


def matches(pattern: str, name: str) -> bool:
    """Whether a regular expression matches the whole of a name.

    Raises:
        ValueError: If `pattern` is not a valid regular expression.
    """
    try:
        return re.fullmatch(pattern, name) is not None
    except re.error as error:
        raise ValueError(f"{pattern!r} is not a valid regular expression: {error}.") from error


def stem_and_head(names: Sequence[str], *, has_head: bool = True) -> dict[str, str]:
    """Returns the short names `stem` and `head`, and the groups they stand for.

    A group that is called so itself keeps its name.
    """
    aliases = {"stem": names[0]}
    if has_head:
        aliases["head"] = names[-1]
    return {alias: name for alias, name in aliases.items() if alias not in names}


def claim_groups(
    patterns: Iterable[str], names: Sequence[str], aliases: Mapping[str, str]
) -> dict[str, str]:
    """Finds the pattern that stands for each layer group.

    Args:
        patterns: Group names, short names, or regular expressions matched whole. A name
            need not be a valid expression, nor match itself as one.
        names: The names of all groups.
        aliases: Short names, and the groups they stand for.

    Returns:
        The pattern of each group that one stands for, keyed by the group's name.

    Raises:
        ValueError: If a pattern matches no group, or two patterns match one.
    """
    claimed: dict[str, str] = {}
    for pattern in patterns:
        meant = aliases.get(pattern, pattern)
        found = [meant] if meant in names else [name for name in names if matches(meant, name)]
        if not found:
            raise ValueError(unknown_group(pattern, names, aliases))
        for name in found:
            if name in claimed:
                raise ValueError(
                    f"Patterns {claimed[name]!r} and {pattern!r} both match the layer group "
                    f"{name!r}. Let one pattern stand for each group."
                )
            claimed[name] = pattern
    return claimed


def no_decay_rules(rules: Any) -> tuple[str, ...]:
    """Checks a `no_decay_on` argument: which variables are exempt from weight decay.

    Raises:
        TypeError: If a rule is not a string.
        ValueError: If a rule is not a valid regular expression.
    """
    if isinstance(rules, str):
        rules = (rules,)
    if not isinstance(rules, Iterable | None):
        raise TypeError(f"{_NO_DECAY_RULES}. Received: {rules!r}")
    checked = tuple(rules or ())
    for rule in checked:
        if not isinstance(rule, str):
            raise TypeError(f"{_NO_DECAY_RULES}. Received: {rule!r}")
        try:
            re.compile(rule)
        except re.error as error:
            raise ValueError(
                f"`no_decay_on` holds {rule!r}, which is not a valid regular expression: {error}"
            ) from None
    return checked


def unknown_group(pattern: str, names: Sequence[str], aliases: Mapping[str, str]) -> str:
    """Returns the message for a pattern that matches no layer group."""
    hint = _checks.did_you_mean(pattern, [*names, *aliases])
    return f"No layer group matches {pattern!r}.{hint} The groups are: {', '.join(names)}."
