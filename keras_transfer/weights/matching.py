"""Which weight of the source belongs to which weight of the target."""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Mapping, Sequence

from keras_transfer import _checks
from keras_transfer.weights.naming import NamedWeight, join
from keras_transfer.weights.sources import Source


@dataclasses.dataclass(frozen=True)
class Match:
    """A weight of the target with its counterpart, or why there is none.

    Args:
        weight: The target's weight.
        source_path: The source's weight, or `None`.
        reason: How the counterpart was found, or why there is none.
        wanted: Whether a counterpart was asked for; a mapping leaves the weights that
            it does not name as they are.
    """

    weight: NamedWeight
    source_path: str | None
    reason: str
    wanted: bool = True


def match_by_path(weights: Sequence[NamedWeight], source: Source) -> list[Match]:
    """Matches equal paths; then paths of which one ends with the other, where that is unique.

    The second rule is for a backbone that stands alone in one model and inside a larger
    one in the other: `"conv1/kernel"` and `"backbone/conv1/kernel"`.
    """
    endings = _by_ending(source.arrays)
    keys = collections.Counter(source.key_of(weight) for weight in weights)
    exact = {key for weight in weights if (key := source.key_of(weight)) in source.arrays}
    by_ending: dict[str, list[str]] = {}
    claims: collections.Counter[str] = collections.Counter()
    for weight in weights:
        key = source.key_of(weight)
        if key in exact or key in source.repeated:
            continue
        candidates = endings.get(_ending(key), [])
        fitting = [each for each in candidates if _ends_alike(each, key) and each not in exact]
        by_ending[key] = fitting
        claims.update(fitting)
    matches = []
    for weight in weights:
        key = source.key_of(weight)
        if keys[key] > 1:
            matches.append(Match(weight, None, "two weights of the target have this path"))
            continue
        if key in exact:
            matches.append(Match(weight, key, "same path"))
            continue
        if key in source.repeated:
            matches.append(Match(weight, None, "two weights of the source have this path"))
            continue
        fitting = by_ending[key]
        if len(fitting) == 1 and claims[fitting[0]] == 1:
            matches.append(Match(weight, fitting[0], "path ends alike"))
        elif fitting:
            several = " and ".join(map(repr, fitting[:3]))
            matches.append(Match(weight, None, f"not clear which of the source's: {several}"))
        else:
            matches.append(Match(weight, None, "not in the source"))
    return matches


def _ending(path: str) -> str:
    return "/".join(path.split("/")[-2:])


def _by_ending(paths: Mapping[str, object]) -> dict[str, list[str]]:
    endings: dict[str, list[str]] = collections.defaultdict(list)
    for path in paths:
        endings[_ending(path)].append(path)
    return endings


def _ends_alike(one: str, other: str) -> bool:
    shorter, longer = sorted((one, other), key=len)
    return longer.endswith("/" + shorter)


def match_by_mapping(
    weights: Sequence[NamedWeight], source: Source, mapping: Mapping[str, str]
) -> list[Match]:
    """Matches as `mapping` says; a key is a weight's path, a layer's path, or a pattern.

    Raises:
        ValueError: If a key names nothing in the target, two keys name the same weight,
            or nothing that a key leads to is in the source.
    """
    if not isinstance(mapping, Mapping):
        raise TypeError(
            "`mapping` must be a dictionary from the target's names to the source's. "
            f"Received: mapping={mapping!r}"
        )
    named: dict[str, tuple[str, str]] = {}
    for key, value in mapping.items():
        _check_entry(key, value)
        targets = _expand(key, value, weights)
        if not targets:
            known = [*(w.path for w in weights), *{w.layer_path for w in weights}]
            raise ValueError(
                f"`mapping` names {key!r}, which is no weight, layer or pattern of the target."
                f"{_checks.did_you_mean(key, known)}"
            )
        for path in targets:
            if path in named:
                raise ValueError(
                    f"`mapping` names the target's {path!r} twice, by {named[path][0]!r} and "
                    f"{key!r}. Make one of them narrower."
                )
        named.update({path: (key, wanted) for path, wanted in targets.items()})
    matches = [_follow(weight, named.get(weight.path), source) for weight in weights]
    _check_every_key_led_somewhere(mapping, named, matches, source)
    return matches


def _check_entry(key: object, value: object) -> None:
    if not isinstance(key, str) or not isinstance(value, str):
        raise TypeError(f"`mapping` must map strings to strings. Received: {key!r}: {value!r}")
    try:
        re.compile(key)
    except re.error as error:
        raise ValueError(
            f"`mapping` has a key that is not a regular expression. Received: {key!r} ({error})"
        ) from error


def _expand(key: str, value: str, weights: Sequence[NamedWeight]) -> dict[str, str]:
    """Returns the source path wanted for each of the target's weights that `key` names."""
    if any(weight.path == key for weight in weights):
        return {key: value}
    inside = [weight for weight in weights if f"{weight.layer_path}/".startswith(f"{key}/")]
    if inside:
        return {weight.path: join(value, weight.path[len(key) + 1 :]) for weight in inside}
    pattern = re.compile(key)
    found = {}
    for weight in weights:
        if match := pattern.fullmatch(weight.path):
            try:
                found[weight.path] = match.expand(value)
            except (re.error, IndexError) as error:
                raise ValueError(
                    f"`mapping` has a value that does not fit its pattern. "
                    f"Received: {key!r}: {value!r} ({error})"
                ) from error
    return found


def _follow(weight: NamedWeight, named: tuple[str, str] | None, source: Source) -> Match:
    if named is None:
        return Match(weight, None, "not named in `mapping`", wanted=False)
    wanted = named[1]
    found = source.find(wanted, weight.index)
    if found is not None:
        return Match(weight, found, "mapping")
    if wanted in source.repeated:
        return Match(weight, None, f"two weights of the source are called {wanted!r}")
    return Match(weight, None, f"no {wanted!r} in the source")


def _check_every_key_led_somewhere(
    mapping: Mapping[str, str],
    named: Mapping[str, tuple[str, str]],
    matches: Sequence[Match],
    source: Source,
) -> None:
    led = {named[match.weight.path][0] for match in matches if match.source_path is not None}
    for key in mapping:
        if key not in led:
            wanted = next(path for owner, path in named.values() if owner == key)
            known = list(source.arrays)
            raise ValueError(
                f"`mapping` sends {key!r} to {wanted!r}, which is not in {source.label}."
                f"{_checks.did_you_mean(wanted, known)} It holds {len(known)} weights, "
                f"{', '.join(map(repr, known[:4]))} and so on."
            )
