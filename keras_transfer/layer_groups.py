"""Layer groups: the units that are frozen together and share a learning rate."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, overload

import keras

from keras_transfer import _checks, _patterns
from keras_transfer._blocks import Block, blocks_of, join
from keras_transfer._functional_graph import Boundary
from keras_transfer._group_starts import auto_starts, starts_by_callable, starts_by_pattern
from keras_transfer._layer_variables import (
    all_layers,
    count_parameters,
    has_variables,
    variables_that_may_train,
)
from keras_transfer._partition import equal_runs
from keras_transfer._tables import format_shape, format_table

# What `groups=` takes, besides a ready `LayerGroups`.
Groups = str | int | Sequence[str] | Mapping[str, str] | Callable[[keras.layers.Layer], str]


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
        return all_layers(self.layers)

    @property
    def variables(self) -> list[keras.Variable]:
        """The variables that may train, frozen or not (no moving statistics)."""
        return variables_that_may_train(self.layers)

    @property
    def parameters(self) -> int:
        """Number of parameters that may train."""
        return count_parameters(self.variables)


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
        return _patterns.stem_and_head(self.names, has_head=self.has_head)

    def select(self, patterns: str | Iterable[str]) -> list[LayerGroup]:
        """Returns the groups that names or patterns stand for, in order.

        Args:
            patterns: Group names or regular expressions, matched whole.

        Raises:
            ValueError: If a pattern matches no group, or two patterns match one.
        """
        patterns = [patterns] if isinstance(patterns, str) else list(patterns)
        claimed = _patterns.claim_groups(patterns, self.names, self.aliases())
        return [group for group in self if group.name in claimed]

    def __str__(self) -> str:
        rows = [("group", "layers", "parameters", "output shape", "cacheable after")]
        for group in self:
            shape = "?" if group.output_shape is None else format_shape(group.output_shape)
            cacheable = "yes" if group.boundary is not None else "no"
            if self.has_head and group is self._groups[-1]:
                cacheable = "-"  # nothing follows that could start from a cache
            rows.append(
                (group.name, str(len(group.layers)), f"{group.parameters:,}", shape, cacheable)
            )
        return format_table(rows)

    def __repr__(self) -> str:
        return f"<LayerGroups {', '.join(self.names)}>"


def backbone_groups(model: keras.Model, groups: Groups = "auto") -> LayerGroups:
    """Splits a pretrained model into layer groups.

    On a functional model, groups end only where a single tensor is alive, so that none
    cuts through a residual block and a BatchNorm stays with its convolution. Other models
    fall back to their top-level layers.

    Args:
        model: A built Keras model.
        groups: `"auto"`: 3 to 8 groups (fewer where the model has fewer places to cut it),
            cut where the resolution changes on an image
            model, into runs of equal parameter count elsewhere. `"blocks"`: the finest
            split in which every group holds parameters. A whole number: that many. A
            list: the first layer (or nested model) of each group, by name or regular
            expression (matched whole); what lies before the first of them is a group too.
            A mapping: the name of each group, and its first layer. A callable
            `layer -> group name`, which is asked about each layer with weights.

    Returns:
        The groups, stem first.

    Raises:
        TypeError: If `model` is not a Keras layer, or `groups` is none of the above.
        ValueError: If the model is not built or has no weights, if a pattern matches no
            layer or one layer is matched twice, if a group would start inside a residual
            block, or if there are fewer blocks than groups asked for.

    Example:

    >>> import keras
    >>> import keras_transfer as ktf
    >>> model = keras.Sequential([
    ...     keras.Input((4,)), keras.layers.Dense(8, name="stem"),
    ...     keras.layers.Dense(8, name="middle"), keras.layers.Dense(2, name="top")])
    >>> print(ktf.backbone_groups(model, ["middle"]))
    group   layers  parameters  output shape  cacheable after
    ------  ------  ----------  ------------  ---------------
    stem    1       40          (…, 8)        yes
    middle  2       90          (…, 2)        yes
    """
    require_weights(model)
    return group_blocks(blocks_of(model), groups)


def name_of_head(name: str, taken: Sequence[str]) -> str:
    """Returns the name of the head's group: its own, unless a group of the backbone has it."""
    names = itertools.chain((name, "head"), (f"{name}_{i}" for i in itertools.count(1)))
    return next(n for n in names if n not in taken)


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
    if not has_variables(model):
        raise ValueError(
            f"{model.name!r} has no weights that could train. A backbone needs layers with weights."
        )


def group_blocks(blocks: list[Block], groups: Groups) -> LayerGroups:
    """Joins blocks into the layer groups that `groups` asks for."""
    starts, given = _starts(blocks, groups)
    made: list[LayerGroup] = []
    for start, stop in zip(starts, [*starts[1:], len(blocks)], strict=True):
        block = join(blocks[start:stop])
        name = given.get(start) or _name(block)
        taken = {*given.values(), *(group.name for group in made)} - {given.get(start)}
        if name in taken:
            name = next(f"{name}_{i}" for i in itertools.count(1) if f"{name}_{i}" not in taken)
        made.append(LayerGroup(name, block.layers, block.output_shape, block.boundary))
    return LayerGroups(made)


def _starts(blocks: list[Block], groups: Groups) -> tuple[list[int], dict[int, str]]:
    """Returns the first block of each group, and names that the user gave."""
    if isinstance(groups, str):
        _checks.choice(groups, "groups", ["auto", "blocks"])
        return (list(range(len(blocks))) if groups == "blocks" else auto_starts(blocks)), {}
    if callable(groups):
        return starts_by_callable(blocks, groups)
    if isinstance(groups, Mapping):
        return starts_by_pattern(blocks, list(groups.values()), list(groups))
    if isinstance(groups, Iterable):
        return starts_by_pattern(blocks, list(groups))
    if isinstance(groups, bool) or not hasattr(groups, "__index__"):
        raise TypeError(
            "`groups` must be 'auto', 'blocks', a whole number, the first layer of each group, or "
            f"a callable. Received: groups={groups!r} of type {type(groups).__name__}"
        )
    count = _checks.integer(groups, "groups", minimum=1)
    if count > len(blocks):
        raise ValueError(
            f"The backbone can be split into at most {len(blocks)} layer groups. "
            f"Received: groups={count}"
        )
    return equal_runs([block.parameters for block in blocks], count), {}


def _name(block: Block) -> str:
    layer = next((layer for layer in block.layers if has_variables(layer)), block.layers[0])
    return str(layer.name)
