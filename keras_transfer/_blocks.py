"""Blocks: the smallest pieces of a model that layer groups are made of."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import keras

from keras_transfer import _keras_internals
from keras_transfer._functional_graph import Boundary, FunctionalGraph
from keras_transfer._layer_variables import (
    count_parameters,
    has_variables,
    variables_that_may_train,
)


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
        return count_parameters(variables_that_may_train(self.layers))


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
            _is_normalization(layer) for layer in piece.layers if has_variables(layer)
        )
        if merged and (belongs_before or not merged[-1].parameters):
            merged[-1] = join([merged[-1], piece])
        else:
            merged.append(piece)
    return merged


def _blocks_of_model(model: keras.layers.Layer) -> list[Block]:
    blocks = blocks_of_layers(getattr(model, "layers", None) or [model])
    covered = {id(v) for block in blocks for v in variables_that_may_train(block.layers)}
    if any(id(v) not in covered for v in variables_that_may_train([model])):
        # Weights that sit on the model itself: no split into layers holds them.
        return [Block((model,), 0, 1, None, None, None)]
    return blocks


def blocks_of_layers(layers: Sequence[keras.layers.Layer]) -> list[Block]:
    """Returns a block for each layer of a model whose graph is not known."""
    return _merge_without_parameters(
        [Block((layer,), i, i + 1, None, None, None) for i, layer in enumerate(layers)]
    )


def join(blocks: Sequence[Block]) -> Block:
    """Returns one block that holds what neighbouring blocks hold."""
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


def _is_normalization(layer: keras.layers.Layer) -> bool:
    return isinstance(
        layer,
        keras.layers.BatchNormalization
        | keras.layers.LayerNormalization
        | keras.layers.GroupNormalization
        | keras.layers.RMSNormalization,
    )
