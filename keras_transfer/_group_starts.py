"""Where layer groups start: by resolution and size, by name, by a callable."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import keras

from keras_transfer import _checks, _patterns
from keras_transfer._blocks import Block, Shape
from keras_transfer._layer_variables import NORMALIZATION_LAYERS, all_layers, has_variables
from keras_transfer._partition import equal_runs

FEWEST_AUTO, MOST_AUTO = 3, 8
# How many groups a backbone gets whose blocks all have one resolution (a Transformer).
AUTO_WITHOUT_RESOLUTION = 6


def auto_starts(blocks: list[Block]) -> list[int]:
    """Returns where groups start so that there are 3 to 8, if there are enough blocks."""
    sizes = [block.parameters for block in blocks]
    resolutions = _Resolutions(blocks)
    images = sum(n for n, b in zip(sizes, blocks, strict=True) if resolutions.after(b) is not None)
    if 2 * images < sum(sizes):  # not images, or cut into tokens after the first block
        return equal_runs(sizes, min(len(blocks), AUTO_WITHOUT_RESOLUTION))
    starts = _starts_of_resolutions(blocks, resolutions)
    if len(starts) < FEWEST_AUTO:
        return equal_runs(sizes, min(len(blocks), FEWEST_AUTO))
    while len(starts) > MOST_AUTO:
        ends = [*starts[1:], len(blocks)]
        weights = [sum(sizes[s:e]) for s, e in zip(starts, ends, strict=True)]
        # Join the two neighbours that hold least.
        lightest = min(range(1, len(starts)), key=lambda i: weights[i - 1] + weights[i])
        del starts[lightest]
    return starts


class _Resolutions:
    """Height and width of the images between blocks, `None` where there are no images."""

    def __init__(self, blocks: Sequence[Block]) -> None:
        # The global `image_data_format` may have changed since the model was made.
        layers = all_layers(layer for block in blocks for layer in block.layers)
        formats = {getattr(layer, "data_format", None) for layer in layers}
        self._first_axis = 2 if "channels_first" in formats else 1

    def after(self, block: Block) -> Shape | None:
        return self._of(block.output_shape)

    def of_weights(self, block: Block) -> Shape | None:
        return self._of(block.weights_shape)

    def _of(self, shape: Shape | None) -> Shape | None:
        if shape is None or len(shape) != 4:
            return None
        return shape[self._first_axis : self._first_axis + 2]


def _starts_of_resolutions(blocks: list[Block], resolutions: _Resolutions) -> list[int]:
    """Where an image becomes smaller than it has been: before a stride, after a pooling."""
    starts = {0}
    smallest = resolutions.after(blocks[0])
    for index, block in enumerate(blocks[1:], start=1):
        size = resolutions.after(block)
        if size is None or smallest is None or not _is_smaller(size, smallest):
            smallest = smallest or size
            continue
        in_weights = resolutions.of_weights(block)
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


def _is_smaller(size: Shape, than: Shape) -> bool:
    return any(a is not None and b is not None and a < b for a, b in zip(size, than, strict=True))


def starts_by_pattern(
    blocks: list[Block], patterns: Sequence[Any], labels: Sequence[str] = ()
) -> tuple[list[int], dict[int, str]]:
    """Returns where groups start, and their names where the user gave any.

    Args:
        blocks: The blocks of the backbone.
        patterns: The first layer of each group, by name or regular expression.
        labels: Names for these groups, if they are not named after their first layer.
    """
    if not patterns:
        raise ValueError("`groups` is empty. Name the first layer of at least one group.")
    places = [
        (name, index, layer)
        for index, block in enumerate(blocks)
        for name, layer in [
            *((model.name, first) for model, first in block.nested),
            *((layer.name, layer) for layer in block.layers),
        ]
    ]
    claimed: dict[int, str] = {}
    starts: dict[int, str] = {}
    names: dict[int, str] = {}
    for number, pattern in enumerate(patterns):
        matched = _places_of(pattern, places)
        for name, _, layer in matched:
            if claimed.setdefault(id(layer), pattern) != pattern:
                raise ValueError(
                    f"Layer {name!r} is matched twice, by {claimed[id(layer)]!r} and {pattern!r}. "
                    "Let one pattern stand for the first layer of each group."
                )
        name, start, layer = matched[0]
        _check_leads(name, start, layer, blocks)
        if start in starts:
            raise ValueError(
                f"{starts[start]!r} and {pattern!r} start the same layer group: no boundary lies "
                "between them. Leave one of them out."
            )
        starts[start] = pattern
        if labels:
            names[start] = labels[number]
    return sorted({0, *starts}), names


def _places_of(
    pattern: Any, places: Sequence[tuple[str, int, keras.layers.Layer]]
) -> list[tuple[str, int, keras.layers.Layer]]:
    if not isinstance(pattern, str):
        raise TypeError(f"`groups` must hold names of layers. Received: {pattern!r}")
    # A name may hold characters that mean something in a regular expression.
    exact = [place for place in places if place[0] == pattern]
    if len({id(layer) for _, _, layer in exact}) > 1:
        raise ValueError(
            f"{len(exact)} layers are called {pattern!r}, so it does not say where a group starts. "
            "Name another layer, or use groups='blocks' or a whole number."
        )
    matched = exact or [place for place in places if _patterns.matches(pattern, place[0])]
    if not matched:
        known = dict.fromkeys(name for name, _, _ in places)
        raise ValueError(
            f"No layer matches {pattern!r}.{_checks.did_you_mean(pattern, known)} "
            "`groups` names the first layer of each group."
        )
    return matched


def _check_leads(name: str, index: int, layer: keras.layers.Layer, blocks: list[Block]) -> None:
    """Checks that a layer is the first one with weights in its block, or stands before it."""
    layers = blocks[index].layers
    leading = layers[: _first_with_variables(layers) + 1]
    if any(layer is other for other in leading):
        return
    first = [block.layers[0].name for block in blocks[index : index + 2] if block.layers]
    if isinstance(layer, NORMALIZATION_LAYERS):
        why = "a normalization stays with the layer before it"
    elif not has_variables(layer):
        why = "a layer without weights stays with the layer before it"
    else:
        why = "it lies inside a block that more than one tensor runs through"
    raise ValueError(
        f"A layer group cannot start at {name!r}: {why}. "
        f"Start the group at {' or '.join(map(repr, first))}."
    )


def starts_by_callable(
    blocks: list[Block], name_of: Callable[[keras.layers.Layer], Any]
) -> tuple[list[int], dict[int, str]]:
    """Returns where the name that `name_of` gives to layers with weights changes, and the names."""
    names: dict[int, str] = {}
    current = None
    for index, block in enumerate(blocks):
        wanted: dict[str, str] = {}
        for layer in block.layers:
            if has_variables(layer):
                wanted.setdefault(_name_by(name_of, layer), layer.name)
        if len(wanted) != 1:
            raise ValueError(
                "The callable given as `groups` puts layers that cannot be separated into "
                f"different groups: {', '.join(f'{v!r} into {k!r}' for k, v in wanted.items())}. "
                f"{_why_not_separated(name_of, block)}"
            )
        name = next(iter(wanted))
        if name == current:
            continue
        if name in names.values():
            raise ValueError(
                f"The callable given as `groups` returns {name!r} for layers that do not follow "
                "each other. A group is a run of neighbouring layers."
            )
        names[index] = current = name
    return list(names), names


def _why_not_separated(name_of: Callable[[keras.layers.Layer], Any], block: Block) -> str:
    holding = [layer for layer in block.layers if has_variables(layer)]
    others = [layer for layer in holding if not isinstance(layer, NORMALIZATION_LAYERS)]
    if len({_name_by(name_of, layer) for layer in others}) <= 1:
        before = others[0] if others else holding[0]
        return (
            "A normalization stays with the layer before it: return "
            f"{_name_by(name_of, before)!r} for both."
        )
    return (
        "More than one tensor runs through them, or they share weights: return one name for all "
        "of them."
    )


def _name_by(name_of: Callable[[keras.layers.Layer], Any], layer: keras.layers.Layer) -> str:
    name = name_of(layer)
    if not isinstance(name, str):
        raise TypeError(
            "The callable given as `groups` must return the name of a layer's group. Received: "
            f"{name!r} for the layer {layer.name!r}"
        )
    return name


def _first_with_variables(layers: Sequence[keras.layers.Layer]) -> int:
    return next((i for i, layer in enumerate(layers) if has_variables(layer)), 0)
