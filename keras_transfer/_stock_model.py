"""Layer groups of a model that the user built without us: where its backbone ends."""

from __future__ import annotations

from typing import Any

import keras

from keras_transfer import _checks, _keras_internals
from keras_transfer._blocks import blocks_of, blocks_of_layers
from keras_transfer._functional_graph import FunctionalGraph
from keras_transfer._layer_variables import has_variables, variables_that_may_train
from keras_transfer.layer_groups import (
    Groups,
    LayerGroup,
    LayerGroups,
    backbone_groups,
    group_blocks,
    require_weights,
)

HEAD_REMEDY = "Name the first layer of the head: GradualUnfreezing(plan, head='first_head_layer')."


def stock_model_groups(
    model: keras.Model, groups: Groups = "auto", head: str | None = None
) -> LayerGroups:
    """Splits a stock Keras model into the layer groups of its backbone, and its head.

    The head is everything after the single nested model; where the backbone is inlined,
    everything from the last reduction of the spatial or sequence axes on (a reduction that
    has weights itself, such as an LSTM's last step, still belongs to the backbone).

    Args:
        model: A built functional, Sequential or subclassed model.
        groups: How to split the backbone; see
            `keras_transfer.layer_groups.backbone_groups`.
        head: Name of the head's first layer, where the rule finds none or the wrong one.

    Returns:
        The groups, stem first, head last.

    Raises:
        ValueError: If no head, or more than one, can be found, if `head` names no layer, or
            if nothing lies before it.
    """
    require_weights(model)
    if _keras_internals.functional_of(model) is None:
        return _groups_of_layers(model, groups, head)
    graph = FunctionalGraph(model)
    stop, note = _head_start(model, graph, head)
    stop = min(stop, len(graph.nodes))
    layers = _layers_with_variables(graph, stop, len(graph.nodes))
    before = {id(la) for la in _layers_with_variables(graph, 0, stop)}
    if not layers or not before:
        raise ValueError(
            f"The head of {model.name!r} was looked for {note}, but that leaves "
            f"{'no weights in the head' if before else 'no backbone before it'}. {HEAD_REMEDY}"
        )
    if any(id(layer) in before for layer in layers):
        raise ValueError(
            f"The head of {model.name!r} shares layers with its backbone. {HEAD_REMEDY}"
        )
    split = group_blocks(blocks_of(model, stop), groups)
    head_layers = {id(n.layer): n.layer for n in graph.nodes[stop:] if n.layer is not None}
    shape = graph.nodes[-1].shapes[0] if graph.nodes[-1].shapes else None
    return _with_head(split, LayerGroup(layers[0].name, tuple(head_layers.values()), shape), note)


def _with_head(split: LayerGroups, head: LayerGroup, note: str) -> LayerGroups:
    if head.name in split.names:
        head = LayerGroup("head", head.layers, head.output_shape)
    return LayerGroups([*split, head], has_head=True, note=note)


def _layers_with_variables(
    graph: FunctionalGraph, start: int, stop: int
) -> list[keras.layers.Layer]:
    layers = {id(n.layer): n.layer for n in graph.nodes[start:stop] if n.layer is not None}
    return [layer for layer in layers.values() if has_variables(layer)]


def _head_start(model: keras.Model, graph: FunctionalGraph, head: str | None) -> tuple[int, str]:
    if head is not None:
        return _named_head(model, graph, head), f"from layer {head!r} on, as given"
    nested = {
        id(n.top_level): n.top_level
        for n in graph.nodes
        if isinstance(n.top_level, keras.Model) and has_variables(n.top_level)
    }
    if len(nested) > 1:
        names = ", ".join(repr(m.name) for m in nested.values())
        raise ValueError(
            f"{model.name!r} holds {len(nested)} nested models ({names}), so it is not clear "
            f"where its head begins. {HEAD_REMEDY}"
        )
    if nested:
        backbone = next(iter(nested.values()))
        last = max(i for i, n in enumerate(graph.nodes) if n.top_level is backbone)
        return last + 1, f"after the nested model {backbone.name!r}"
    reductions = [i for i, n in enumerate(graph.nodes) if _reduces(n, graph)]
    if not reductions:
        raise ValueError(
            f"{model.name!r} holds no nested model and reduces no spatial or sequence axis, so it "
            f"is not clear where its head begins. {HEAD_REMEDY}"
        )
    last = reductions[-1]
    layer = graph.nodes[last].layer
    name = getattr(graph.nodes[last].operation, "name", "?")
    if layer is not None and layer.variables:
        return last + 1, f"after {name!r}, the last reduction of the spatial or sequence axes"
    return last, f"from {name!r} on, the last reduction of the spatial or sequence axes"


def _named_head(model: keras.Model, graph: FunctionalGraph, head: str) -> int:
    if not isinstance(head, str):
        raise TypeError(f"`head` must be the name of a layer. Received: head={head!r}")
    names = [n.layer.name if n.layer is not None else "" for n in graph.nodes]
    outer = [getattr(n.top_level, "name", "") for n in graph.nodes]
    for candidates in (names, outer):
        if head in candidates:
            return candidates.index(head)
    known = [n for n in dict.fromkeys([*names, *outer]) if n]
    raise ValueError(
        f"{model.name!r} has no layer {head!r}.{_checks.did_you_mean(head, known)} "
        "`head` names the first layer of the head."
    )


def _reduces(node: Any, graph: FunctionalGraph) -> bool:
    """Whether the node hands on fewer axes than it reads, down to (batch, features)."""
    if node.operation is None or len(node.shapes) != 1 or len(node.shapes[0]) != 2:
        return False
    return any(len(shape) > 2 for shape in graph.shapes_read_by(node))


def _groups_of_layers(model: keras.Model, groups: Groups, head: str | None) -> LayerGroups:
    """A subclassed model: its top-level layers, in the order in which they were made."""
    layers = [la for la in model.layers if has_variables(la)]
    names = [layer.name for layer in layers]
    if head is not None:
        if head not in names:
            raise ValueError(
                f"{model.name!r} has no layer {head!r} with weights at its top level."
                f"{_checks.did_you_mean(head, names)} `head` names the first layer of the head."
            )
        start, note = names.index(head), f"from layer {head!r} on, as given"
    elif "head" in names:
        start, note = names.index("head"), "from layer 'head' on"
    else:
        nested = [i for i, layer in enumerate(layers) if isinstance(layer, keras.Model)]
        if len(nested) != 1:
            raise ValueError(
                f"{model.name!r} is a subclassed model with {len(nested)} nested models, so it is "
                f"not clear where its head begins. Its layers are: {', '.join(names)}. "
                f"{HEAD_REMEDY}"
            )
        start, note = nested[0] + 1, f"after the nested model {names[nested[0]]!r}"
    if not 0 < start < len(layers):
        raise ValueError(
            f"The head of {model.name!r} was looked for {note}, but that leaves no "
            f"{'backbone before it' if start == 0 else 'weights in the head'}. {HEAD_REMEDY}"
        )
    if start == 1 and isinstance(layers[0], keras.Model):
        split = backbone_groups(layers[0], groups)
        # The graph cannot be cut from outside a model that is not functional.
        split = LayerGroups(LayerGroup(g.name, g.layers, g.output_shape) for g in split)
    else:
        split = group_blocks(blocks_of_layers(layers[:start]), groups)
    covered = {id(v) for la in layers for v in variables_that_may_train([la])}
    loose = [v.path for v in variables_that_may_train([model]) if id(v) not in covered]
    if loose:
        raise ValueError(
            f"{model.name!r} has weights that belong to no layer ({', '.join(loose[:3])}), so no "
            "layer group can hold them. Put them into a layer."
        )
    return _with_head(split, LayerGroup(layers[start].name, tuple(layers[start:])), note)
