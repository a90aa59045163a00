"""Blocks: the smallest pieces of a model that layer groups are made of."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import keras

from keras_transfer import _keras_internals
from keras_transfer._functional_graph import Boundary, FunctionalGraph
from keras_transfer._layer_variables import (
    NORMALIZATION_LAYERS,
    count_parameters,
    has_variables,
    variables_that_may_train,
)

Shape = tuple[int | None, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Block:
    """The smallest piece that a group may be made of.

    Attributes:
        layers: Its layers, in the order in which data meets them.
        boundary: Where the graph can be cut after it.
        output_shape: Shape of what it hands on, with the batch.
        weights_shape: Shape of what its first layers with weights hand on.
        nested: Nested models that begin in it, each with the first layer that holds weights.
    """

    layers: tuple[keras.layers.Layer, ...]
    boundary: Boundary | None = None
    output_shape: Shape | None = None
    weights_shape: Shape | None = None
    nested: tuple[tuple[keras.layers.Layer, keras.layers.Layer], ...] = ()

    @property
    def parameters(self) -> int:
        """Number of parameters that may train."""
        return count_parameters(variables_that_may_train(self.layers))


def blocks_of(model: keras.layers.Layer) -> list[Block]:
    """Returns the finest split of `model` in which every block holds parameters."""
    if _keras_internals.functional_of(model) is None:
        return _blocks_of_model(model)
    return blocks_of_graph(FunctionalGraph(model))


def blocks_of_graph(graph: FunctionalGraph, stop: int | None = None) -> list[Block]:
    """Returns the finest split of a graph, or of what lies before node `stop`."""
    last = len(graph.nodes) if stop is None else stop
    cuts: dict[int, Boundary | None] = {b.index: b for b in graph.boundaries if b.index < last}
    cuts[last] = next((b for b in graph.boundaries if b.index == last), None)
    if stop is None and len(graph.outputs) == 1:
        cuts[last] = Boundary(last, graph.outputs[0], graph.shape_of(graph.outputs[0]), (), ())
    beginnings = _nested_models(graph, last)
    pieces: list[Block] = []
    start = 0
    for index, boundary in cuts.items():
        nodes = graph.nodes[start:index]
        layers = tuple({id(n.layer): n.layer for n in nodes if n.layer is not None}.values())
        shape = boundary.shape if boundary is not None else None
        nested = tuple(pair for i, pair in beginnings if start <= i < index)
        pieces.append(Block(layers, boundary, shape, shape, nested))
        start = index
    return _merge_without_parameters(pieces)


def _nested_models(
    graph: FunctionalGraph, stop: int
) -> list[tuple[int, tuple[keras.layers.Layer, keras.layers.Layer]]]:
    """Returns where each nested model begins: the node, the model and its first layer."""
    found: dict[int, tuple[int, tuple[keras.layers.Layer, keras.layers.Layer]]] = {}
    for index, node in enumerate(graph.nodes[:stop]):
        if node.layer is not None and node.inside and has_variables(node.layer):
            for model in node.inside:
                found.setdefault(id(model), (index, (model, node.layer)))
    return list(found.values())


def _merge_without_parameters(pieces: list[Block]) -> list[Block]:
    """Joins what holds no parameters, or only normalizes, to the piece before it."""
    merged: list[Block] = []
    for piece in pieces:
        belongs_before = not piece.parameters or all(
            isinstance(layer, NORMALIZATION_LAYERS)
            for layer in piece.layers
            if has_variables(layer)
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
        return [Block((model,))]
    return blocks


def blocks_of_layers(layers: Sequence[keras.layers.Layer]) -> list[Block]:
    """Returns a block for each layer of a model whose graph is not known."""
    blocks: list[Block] = []
    for layer in layers:
        block = Block((layer,))
        held = {id(v) for v in variables_that_may_train([layer])}
        shared = (
            i
            for i, earlier in enumerate(blocks)
            if any(id(v) in held for v in variables_that_may_train(earlier.layers))
        )
        # A variable that two layers hold (tied weights) would belong to two groups.
        first = next(shared, len(blocks))
        blocks[first:] = [join([*blocks[first:], block])]
    return _merge_without_parameters(blocks)


def join(blocks: Sequence[Block]) -> Block:
    """Returns one block that holds what neighbouring blocks hold."""
    layers = {id(layer): layer for block in blocks for layer in block.layers}
    first, last = blocks[0], blocks[-1]
    return Block(
        tuple(layers.values()),
        last.boundary,
        last.output_shape,
        next((b.weights_shape for b in blocks if b.parameters), first.weights_shape),
        tuple(pair for block in blocks for pair in block.nested),
    )
