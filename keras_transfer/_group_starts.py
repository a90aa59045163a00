"""Where layer groups start: by resolution and size, by name, by a callable."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import keras

from keras_transfer import _checks
from keras_transfer._blocks import Block
from keras_transfer._layer_variables import has_variables
from keras_transfer._partition import equal_runs

FEWEST_AUTO, MOST_AUTO = 3, 8


def auto_starts(blocks: list[Block]) -> list[int]:
    sizes = [block.parameters for block in blocks]
    if not any(_resolution(block.output_shape) for block in blocks):
        return equal_runs(sizes, min(len(blocks), 6))
    starts = _starts_of_resolutions(blocks)
    if len(starts) < FEWEST_AUTO:
        return equal_runs(sizes, min(len(blocks), FEWEST_AUTO))
    while len(starts) > MOST_AUTO:
        ends = [*starts[1:], len(blocks)]
        weights = [sum(sizes[s:e]) for s, e in zip(starts, ends, strict=True)]
        # Join the two neighbours that hold least.
        lightest = min(range(1, len(starts)), key=lambda i: weights[i - 1] + weights[i])
        del starts[lightest]
    return starts


def _starts_of_resolutions(blocks: list[Block]) -> list[int]:
    """Where an image becomes smaller than it has been: before a stride, after a pooling."""
    starts = {0}
    smallest = _resolution(blocks[0].output_shape)
    for index, block in enumerate(blocks[1:], start=1):
        size = _resolution(block.output_shape)
        if size is None or smallest is None or not _is_smaller(size, smallest):
            smallest = smallest or size
            continue
        in_weights = _resolution(block.weights_shape)
        if in_weights is not None and _is_smaller(in_weights, smallest):
            starts.add(_before_expansion(blocks, index, max(starts)))
        else:
            starts.add(index + 1)
        smallest = size
    return sorted(start for start in starts if start < len(blocks))


def _before_expansion(blocks: list[Block], index: int, least: int) -> int:
    """Steps back over a block that only widens the tensor (an inverted bottleneck's first).

    The cut then falls where the tensor is narrow, which is also the cheaper place to cache.
    """
    while index - 1 > least and _elements(blocks[index - 1]) > _elements(blocks[index - 2]):
        index -= 1
    return index


def _elements(block: Block) -> int:
    return math.prod(d or 1 for d in block.output_shape or (0,))


def _is_smaller(size: tuple[int | None, ...], than: tuple[int | None, ...]) -> bool:
    return any(a is not None and b is not None and a < b for a, b in zip(size, than, strict=True))


def _resolution(shape: tuple[int | None, ...] | None) -> tuple[int | None, ...] | None:
    """Height and width of an image tensor, else `None`."""
    if shape is None or len(shape) != 4:
        return None
    channels_first = keras.config.image_data_format() == "channels_first"
    return shape[2:] if channels_first else shape[1:3]


def starts_by_pattern(blocks: list[Block], patterns: list[Any]) -> list[int]:
    where = {layer.name: i for i, block in enumerate(blocks) for layer in block.layers}
    first = [block.layers[0].name if block.layers else "" for block in blocks]
    claimed: dict[str, str] = {}
    starts = {0}
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise TypeError(f"`groups` must hold names of layers. Received: {pattern!r}")
        matched = [name for name in where if name == pattern or matches(pattern, name)]
        if not matched:
            raise ValueError(
                f"No layer matches {pattern!r}.{_checks.did_you_mean(pattern, where)} "
                "`groups` names the first layer of each group."
            )
        for name in matched:
            if name in claimed:
                raise ValueError(
                    f"Layer {name!r} is matched twice, by {claimed[name]!r} and {pattern!r}. "
                    "Let one pattern stand for the first layer of each group."
                )
            claimed[name] = pattern
        name = matched[0]
        block = where[name]
        layers = blocks[block].layers
        leading = [la.name for la in layers[: _first_with_variables(layers) + 1]]
        if name not in leading:
            follows = first[block + 1] if block + 1 < len(blocks) else None
            instead = " or ".join(repr(n) for n in (first[block], follows) if n)
            raise ValueError(
                f"A layer group cannot start at {name!r}: it lies inside a block that more than "
                f"one tensor runs through. Start the group at {instead}."
            )
        starts.add(block)
    return sorted(starts)


def starts_by_callable(
    blocks: list[Block], name_of: Callable[[keras.layers.Layer], str]
) -> tuple[list[int], list[str]]:
    starts: list[int] = []
    names: list[str] = []
    for index, block in enumerate(blocks):
        wanted = {str(name_of(layer)): layer.name for layer in block.layers if has_variables(layer)}
        if len(wanted) != 1:
            raise ValueError(
                "The callable given as `groups` puts layers that cannot be separated into "
                f"different groups: {wanted}. More than one tensor runs through them."
            )
        name = next(iter(wanted))
        if names and names[-1] == name:
            continue
        if name in names:
            raise ValueError(
                f"The callable given as `groups` returns {name!r} for layers that do not follow "
                "each other. A group is a run of neighbouring layers."
            )
        starts.append(index)
        names.append(name)
    return starts, names


def _first_with_variables(layers: Sequence[keras.layers.Layer]) -> int:
    return next((i for i, layer in enumerate(layers) if has_variables(layer)), 0)


def matches(pattern: str, name: str) -> bool:
    try:
        return re.fullmatch(pattern, name) is not None
    except re.error as error:
        raise ValueError(f"{pattern!r} is not a valid regular expression: {error}.") from error
