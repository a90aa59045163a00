"""Where an inlined backbone ends: the last reduction of the spatial or sequence axes."""

from __future__ import annotations

import keras

from keras_transfer._blocks import Shape
from keras_transfer._functional_graph import FunctionalGraph, Key, Node
from keras_transfer._layer_variables import has_variables

GLOBAL_POOLING = (
    keras.layers.GlobalAveragePooling1D,
    keras.layers.GlobalAveragePooling2D,
    keras.layers.GlobalAveragePooling3D,
    keras.layers.GlobalMaxPooling1D,
    keras.layers.GlobalMaxPooling2D,
    keras.layers.GlobalMaxPooling3D,
)


def last_reduction(graph: FunctionalGraph) -> Node | None:
    """Returns the node that takes the spatial or sequence axes away for good.

    That is the last global pooling, or the last node whose output has lost its axes (a
    flattening, a reshaping, a recurrent layer's last step). Shapes alone do not tell: on small
    images the maps are 1x1 long before the backbone ends.
    """
    found = [n for n in graph.nodes if _drops_axes(n, graph) and not _widens_after(n, graph)]
    useful = [node for node in found if _weights_follow(node, graph)]
    if not useful:
        # A pooling over a window as large as the maps, before a convolution as the classifier.
        shrinking = (n for n in graph.nodes if _shrinks(n, graph) and not _widens_after(n, graph))
        useful = [node for node in shrinking if _weights_follow(node, graph)]
        return useful[-1] if useful else (found[-1] if found else None)
    # What follows from a pooling, such as a flattening of its 1x1 maps, lies in the head.
    derived: set[Key] = set()
    for node in useful:
        if not derived.intersection(node.reads):
            last = node
        derived |= _downstream_of(node, graph)
    return last


def holds_variables(node: Node) -> bool:
    """Whether a node calls a layer with variables that may train."""
    return node.layer is not None and has_variables(node.layer)


def _drops_axes(node: Node, graph: FunctionalGraph) -> bool:
    if isinstance(node.operation, GLOBAL_POOLING):
        return True
    if node.operation is None or len(node.shapes) != 1 or len(node.shapes[0]) > 2:
        return False
    return any(len(shape) > 2 for shape in graph.shapes_read_by(node))


def _shrinks(node: Node, graph: FunctionalGraph) -> bool:
    """Whether a node without weights leaves nothing but ones for the axes of its input."""
    if node.operation is None or len(node.shapes) != 1 or holds_variables(node):
        return False
    before = graph.shapes_read_by(node)
    return _is_reduced(node.shapes[0]) and any(not _is_reduced(shape) for shape in before)


def _downstream_of(node: Node, graph: FunctionalGraph) -> set[Key]:
    reached = set(node.writes)
    for later in graph.nodes:
        if reached.intersection(later.reads):
            reached.update(later.writes)
    return reached


def _weights_follow(node: Node, graph: FunctionalGraph) -> bool:
    reached = _downstream_of(node, graph)
    later = (n for n in graph.nodes if n is not node and reached.intersection(n.reads))
    return any(holds_variables(n) for n in later)


def _widens_after(node: Node, graph: FunctionalGraph) -> bool:
    """Whether what the node writes runs back into maps or sequences.

    Squeeze-and-excitation pools inside each block, and a decoder begins at a vector; no head
    starts at either. Where the maps are 1x1, it shows in what else is read: the maps.
    """
    reached = set(node.writes)
    for later in graph.nodes:
        if reached.intersection(later.reads):
            others = [key for key in later.reads if key not in reached]
            if any(len(graph.shape_of(key)) > 2 for key in others):
                return True
            if not all(map(_is_reduced, later.shapes)):
                return True
            reached.update(later.writes)
    return False


def _is_reduced(shape: Shape) -> bool:
    """Whether a shape is (batch, features), or has nothing but ones for its other axes."""
    if len(shape) <= 2 or all(d == 1 for d in shape[1:-1]):
        return True
    return len(shape) > 3 and all(d == 1 for d in shape[2:])  # channels_first
