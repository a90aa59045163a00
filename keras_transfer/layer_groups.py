"""Layer groups: the units that are frozen together and share a learning rate."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, overload

import keras

from keras_transfer import _checks, _keras_internals
from keras_transfer._functional_graph import Boundary, FunctionalGraph
from keras_transfer._partition import equal_runs

# What `groups=` takes, besides a ready `LayerGroups`.
Groups = str | int | Sequence[str] | Callable[[keras.layers.Layer], str]
FEWEST_AUTO, MOST_AUTO = 3, 8


@dataclasses.dataclass(frozen=True, eq=False)
class LayerGroup:
    """An ordered set of layers that are frozen as one and share a learning rate.

    Attributes:
        name: The name of the first layer with parameters, unless the user gave one.
        layers: The layers, in the order in which data meets them.
        output_shape: Shape of what the group hands on, with the batch; `None` where
            the model is not functional.
        boundary: Where the graph can be cut after the group; `None` if it cannot.
    """

    name: str
    layers: tuple[keras.layers.Layer, ...]
    output_shape: tuple[int | None, ...] | None = None
    boundary: Boundary | None = None

    @property
    def all_layers(self) -> list[keras.layers.Layer]:
        """The layers and every layer inside them, each once."""
        nested = (inner for layer in self.layers for inner in _keras_internals.flatten_layers(layer))
        return list({id(layer): layer for layer in nested}.values())

    @property
    def variables(self) -> list[keras.Variable]:
        """The variables that may train, frozen or not (no moving statistics)."""
        own = (v for la in self.all_layers for v in _keras_internals.own_trainable_variables(la))
        return list({id(v): v for v in own}.values())

    @property
    def parameters(self) -> int:
        """Number of parameters that may train."""
        return sum(_size(v) for v in self.variables)


class LayerGroups(Sequence[LayerGroup]):
    """The layer groups of a model, from the stem to the head.

    `groups[0]` also answers to the name `"stem"` and, where a head belongs to them,
    `groups[-1]` to `"head"`. Printing shows a table.

    Args:
        groups: The groups, in order; every layer is in one group.
        has_head: Whether the last group is the head.
        note: How the head was found, printed by the callback.
    """

    def __init__(
        self, groups: Iterable[LayerGroup], *, has_head: bool = False, note: str = ""
    ) -> None:
        self._groups = tuple(groups)
        self.has_head = has_head
        self.note = note

    @overload
    def __getitem__(self, index: int) -> LayerGroup: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[LayerGroup, ...]: ...
    def __getitem__(self, index: int | slice) -> LayerGroup | tuple[LayerGroup, ...]:
        return self._groups[index]

    def __len__(self) -> int:
        return len(self._groups)

    def __iter__(self) -> Iterator[LayerGroup]:
        return iter(self._groups)

    @property
    def names(self) -> list[str]:
        """The name of each group, in order."""
        return [group.name for group in self._groups]

    @property
    def variables(self) -> list[keras.Variable]:
        """The variables of all groups, stem first."""
        return list({id(v): v for group in self for v in group.variables}.values())

    def by_name(self) -> dict[str, list[keras.Variable]]:
        """Returns the variables of each group, keyed by its name, stem first."""
        return {group.name: group.variables for group in self}

    def aliases(self) -> dict[str, str]:
        """Returns the short names, `stem` and `head`, and the groups they stand for."""
        names = {"stem": self._groups[0].name}
        if self.has_head:
            names["head"] = self._groups[-1].name
        return {alias: name for alias, name in names.items() if alias not in self.names}

    def select(self, patterns: str | Iterable[str]) -> list[LayerGroup]:
        """Returns the groups that names or patterns stand for, in order.

        Args:
            patterns: Group names or regular expressions, matched whole.

        Raises:
            ValueError: If a pattern matches no group, or two patterns match one.
        """
        patterns = [patterns] if isinstance(patterns, str) else list(patterns)
        claimed: dict[str, str] = {}
        for pattern in patterns:
            meant = self.aliases().get(pattern, pattern)
            matched = [name for name in self.names if name == meant or _matches(meant, name)]
            if not matched:
                known = [*self.names, *self.aliases()]
                raise ValueError(
                    f"No layer group matches {pattern!r}.{_checks.did_you_mean(pattern, known)} "
                    f"The groups are: {', '.join(self.names)}."
                )
            for name in matched:
                if name in claimed:
                    raise ValueError(
                        f"Patterns {claimed[name]!r} and {pattern!r} both match the layer group "
                        f"{name!r}. Let one pattern stand for each group."
                    )
                claimed[name] = pattern
        return [group for group in self if group.name in claimed]

    def __str__(self) -> str:
        rows = [("group", "layers", "parameters", "output shape", "cacheable after")]
        for group in self:
            shape = "?" if group.output_shape is None else _shape(group.output_shape)
            cacheable = "yes" if group.boundary is not None else "no"
            rows.append(
                (group.name, str(len(group.layers)), f"{group.parameters:,}", shape, cacheable)
            )
        return format_table(rows)

    def __repr__(self) -> str:
        return f"<LayerGroups {', '.join(self.names)}>"


@dataclasses.dataclass(frozen=True, eq=False)
class Block:
    """The smallest piece that a group may be made of."""

    layers: tuple[keras.layers.Layer, ...]
    start: int
    stop: int
    boundary: Boundary | None
    output_shape: tuple[int | None, ...] | None
    weights_shape: tuple[int | None, ...] | None  # what its first layers with weights hand on

    @property
    def parameters(self) -> int:
        return LayerGroup("", self.layers).parameters


def backbone_groups(model: keras.Model, groups: Groups = "auto") -> LayerGroups:
    """Splits a pretrained model into layer groups.

    On a functional model, groups end only where a single tensor is alive, so that none
    cuts through a residual block and a BatchNorm stays with its convolution. Other models
    fall back to their top-level layers.

    Args:
        model: A built Keras model.
        groups: `"auto"`: 3 to 8 groups, cut where the resolution changes on an image
            model, into runs of equal parameter count elsewhere. `"blocks"`: the finest
            split in which every group holds parameters. A whole number: that many. A
            list: the first layer of each group, by name or regular expression (matched
            whole); what lies before the first of them is a group too. A callable
            `layer -> group name`.

    Returns:
        The groups, stem first.

    Raises:
        ValueError: If a pattern matches no layer or one layer is matched twice, if a
            group would start inside a residual block, or if there are fewer blocks than
            groups asked for.
    """
    require_weights(model)
    return group_blocks(blocks_of(model), groups)


def require_weights(model: Any) -> None:
    """Checks that `model` is a built Keras layer or model that holds weights."""
    if not isinstance(model, keras.layers.Layer):
        raise TypeError(
            f"A backbone must be a Keras model or layer. Received: {model!r} of type "
            f"{type(model).__name__}"
        )
    if not model.built:
        raise ValueError(
            f"{model.name!r} is not built, so its layers have no weights yet. Call it once on a "
            "batch, or give it an input shape."
        )
    if not LayerGroup("", (model,)).variables:
        raise ValueError(
            f"{model.name!r} has no weights that could train. A backbone needs layers with "
            "weights."
        )


def blocks_of(model: keras.layers.Layer, stop: int | None = None) -> list[Block]:
    """Returns the finest split of `model` in which every block holds parameters."""
    if _keras_internals.functional_of(model) is None:
        return _blocks_of_model(model)
    graph = FunctionalGraph(model)
    last = len(graph.nodes) if stop is None else stop
    cuts: dict[int, Boundary | None] = {b.index: b for b in graph.boundaries if b.index < last}
    cuts[last] = next((b for b in graph.boundaries if b.index == last), None)
    if stop is None and len(graph.outputs) == 1:
        cuts[last] = Boundary(last, graph.outputs[0], graph.shape_of(graph.outputs[0]), (), ())
    pieces: list[Block] = []
    start = 0
    for index, boundary in cuts.items():
        nodes = graph.nodes[start:index]
        layers = tuple({id(n.layer): n.layer for n in nodes if n.layer is not None}.values())
        shape = boundary.shape if boundary is not None else None
        pieces.append(Block(layers, start, index, boundary, shape, shape))
        start = index
    return _merge_without_parameters(pieces)


def _merge_without_parameters(pieces: list[Block]) -> list[Block]:
    """Joins what holds no parameters, or only normalizes, to the piece before it."""
    merged: list[Block] = []
    for piece in pieces:
        belongs_before = not piece.parameters or all(
            _is_normalization(layer) for layer in piece.layers if _has_variables(layer)
        )
        if merged and (belongs_before or not merged[-1].parameters):
            merged[-1] = _join([merged[-1], piece])
        else:
            merged.append(piece)
    return merged


def _blocks_of_model(model: keras.layers.Layer) -> list[Block]:
    blocks = blocks_of_layers(getattr(model, "layers", None) or [model])
    covered = {id(v) for block in blocks for v in LayerGroup("", block.layers).variables}
    if any(id(v) not in covered for v in LayerGroup("", (model,)).variables):
        # Weights that sit on the model itself: no split into layers holds them.
        return [Block((model,), 0, 1, None, None, None)]
    return blocks


def blocks_of_layers(layers: Sequence[keras.layers.Layer]) -> list[Block]:
    """Returns a block for each layer of a model whose graph is not known."""
    return _merge_without_parameters(
        [Block((layer,), i, i + 1, None, None, None) for i, layer in enumerate(layers)]
    )


def _join(blocks: Sequence[Block]) -> Block:
    layers = {id(layer): layer for block in blocks for layer in block.layers}
    first, last = blocks[0], blocks[-1]
    return Block(
        tuple(layers.values()),
        first.start,
        last.stop,
        last.boundary,
        last.output_shape,
        next((b.weights_shape for b in blocks if b.parameters), first.weights_shape),
    )


def group_blocks(blocks: list[Block], groups: Groups) -> LayerGroups:
    """Joins blocks into the layer groups that `groups` asks for."""
    names: list[str] | None = None
    if isinstance(groups, str):
        _checks.choice(groups, "groups", ["auto", "blocks"])
        starts = list(range(len(blocks))) if groups == "blocks" else _auto_starts(blocks)
    elif callable(groups):
        starts, names = _starts_by_callable(blocks, groups)
    elif isinstance(groups, Iterable):
        starts = _starts_by_pattern(blocks, list(groups))
    else:
        count = _checks.integer(groups, "groups", minimum=1)
        if count > len(blocks):
            raise ValueError(
                f"The backbone can be split into at most {len(blocks)} layer groups. "
                f"Received: groups={count}"
            )
        starts = equal_runs([block.parameters for block in blocks], count)
    stops = [*starts[1:], len(blocks)]
    made: list[LayerGroup] = []
    for number, (start, stop) in enumerate(zip(starts, stops, strict=True)):
        block = _join(blocks[start:stop])
        name = names[number] if names else _name(block)
        taken = {group.name for group in made}
        if name in taken:
            name = next(f"{name}_{i}" for i in range(1, 999) if f"{name}_{i}" not in taken)
        made.append(LayerGroup(name, block.layers, block.output_shape, block.boundary))
    return LayerGroups(made)


def _auto_starts(blocks: list[Block]) -> list[int]:
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


def _starts_by_pattern(blocks: list[Block], patterns: list[Any]) -> list[int]:
    where = {layer.name: i for i, block in enumerate(blocks) for layer in block.layers}
    first = [block.layers[0].name if block.layers else "" for block in blocks]
    claimed: dict[str, str] = {}
    starts = {0}
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise TypeError(f"`groups` must hold names of layers. Received: {pattern!r}")
        matched = [name for name in where if name == pattern or _matches(pattern, name)]
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


def _starts_by_callable(
    blocks: list[Block], name_of: Callable[[keras.layers.Layer], str]
) -> tuple[list[int], list[str]]:
    starts: list[int] = []
    names: list[str] = []
    for index, block in enumerate(blocks):
        wanted = {str(name_of(layer)): layer.name for layer in block.layers if _has_variables(layer)}
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


def _name(block: Block) -> str:
    named = [la.name for la in block.layers if LayerGroup("", (la,)).variables]
    return named[0] if named else block.layers[0].name


def _first_with_variables(layers: Sequence[keras.layers.Layer]) -> int:
    return next((i for i, layer in enumerate(layers) if _has_variables(layer)), 0)


def _has_variables(layer: keras.layers.Layer) -> bool:
    return bool(LayerGroup("", (layer,)).variables)


def _is_normalization(layer: keras.layers.Layer) -> bool:
    return isinstance(
        layer,
        keras.layers.BatchNormalization
        | keras.layers.LayerNormalization
        | keras.layers.GroupNormalization
        | keras.layers.RMSNormalization,
    )


def _matches(pattern: str, name: str) -> bool:
    try:
        return re.fullmatch(pattern, name) is not None
    except re.error as error:
        raise ValueError(f"{pattern!r} is not a valid regular expression: {error}.") from error


def _size(variable: keras.Variable) -> int:
    size = 1
    for dimension in variable.shape:
        size *= int(dimension)
    return size


def _shape(shape: tuple[int | None, ...]) -> str:
    return "(" + ", ".join("…" if d is None else str(d) for d in shape) + ")"


def format_table(rows: Sequence[Sequence[str]]) -> str:
    """Lays out rows of text as a plain table; the first row is the header."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths)).rstrip() for row in rows]
    lines.insert(1, "  ".join("-" * w for w in widths))
    return "\n".join(lines)
