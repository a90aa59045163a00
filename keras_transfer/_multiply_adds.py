"""Counts the multiply-adds of the layers of a functional model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras

from keras_transfer._functional_graph import FunctionalGraph, Node


def multiply_adds(graph: FunctionalGraph) -> list[int]:
    """Returns how many multiply-adds each node takes for one example.

    A kernel takes one for each of its weights at each position of its output; that is exact
    for convolutions, dense layers and (at each step) recurrent ones. Products of activations
    with activations, as in attention, are not counted. A length that is not known counts as 1.
    """
    shapes = {key: shape for node in graph.nodes for key, shape in _outputs(node)}
    return [_of_node(node, shapes) for node in graph.nodes]


def _outputs(node: Node) -> list[tuple[Any, tuple[int | None, ...]]]:
    return list(zip(node.writes, node.shapes, strict=True))


def _of_node(node: Node, shapes: dict[Any, tuple[int | None, ...]]) -> int:
    layer = node.layer
    if layer is None or isinstance(layer, keras.layers.Embedding):
        return 0
    kernels = [weight for weight in layer.weights if len(weight.shape) > 1]
    if not kernels:
        return 0
    size = sum(math.prod(weight.shape) for weight in kernels)
    if isinstance(layer, keras.layers.RNN | keras.layers.Bidirectional):
        read = next((shapes[key] for key in node.reads if key in shapes), (None, None))
        return int(size * (read[1] or 1))
    channels_first = getattr(layer, "data_format", None) == "channels_first"
    return int(size) * _positions(node.shapes[0], channels_first=channels_first)


def _positions(shape: Sequence[int | None], *, channels_first: bool) -> int:
    positions = shape[2:] if channels_first else shape[1:-1]
    return math.prod(length or 1 for length in positions)
