"""Layer groups of a model that the user built without us: where its backbone ends."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import keras

from keras_transfer import _checks, _keras_internals
from keras_transfer._blocks import Shape, blocks_of_graph, blocks_of_layers
from keras_transfer._functional_graph import FunctionalGraph, Key, Node
from keras_transfer._last_reduction import holds_variables, last_reduction
from keras_transfer._layer_variables import has_variables, variables_that_may_train
from keras_transfer.layer_groups import (
    Groups,
    LayerGroup,
    LayerGroups,
    backbone_groups,
    group_blocks,
    name_of_head,
    require_weights,
)

HEAD_REMEDY = "Name the first layer of the head: GradualUnfreezing(plan, head='first_head_layer')."


def stock_model_groups(
    model: keras.Model, groups: Groups = "auto", head: str | None = None
) -> LayerGroups:
    """Splits a stock Keras model into the layer groups of its backbone, and its head.

    The head is everything after the single nested model; where the backbone is inlined,
    everything from the last reduction of the spatial or sequence axes on (a reduction that
    has weights itself, such as an LSTM's last step, still belongs to the backbone). Layers
    that the backbone does not depend on, such as a branch for further inputs, belong to the
    head as well.

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
    if head is not None and not isinstance(head, str):
        raise TypeError(f"`head` must be the name of a layer. Received: head={head!r}")
    if _keras_internals.functional_of(model) is None:
        return _groups_of_layers(model, groups, head)
    graph = FunctionalGraph(model)
    backbone, note = _find_backbone(model, graph, head)
    stop = len(backbone)
    graph = graph.reordered(backbone)
    before = _layers_with_variables(graph.nodes[:stop])
    layers = _layers_with_variables(graph.nodes[stop:])
    if not layers or not before:
        raise ValueError(
            f"The head of {model.name!r} was looked for {note}, but that leaves "
            f"{'no weights in the head' if before else 'no backbone before it'}. {HEAD_REMEDY}"
        )
    held = {id(v) for v in variables_that_may_train(before)}
    shared = next((v.path for v in variables_that_may_train(layers) if id(v) in held), None)
    if shared is not None:
        raise ValueError(
            f"The head of {model.name!r}, looked for {note}, shares weights with its backbone "
            f"({shared}). {HEAD_REMEDY}"
        )
    if len(before) == 1 and _own_groups(before[0]) is not None:
        split = _groups_of_backbone(before[0], groups)
    else:
        split = _without_boundaries(group_blocks(blocks_of_graph(graph, stop), groups))
    in_head = {id(n.layer): n.layer for n in graph.nodes[stop:] if n.layer is not None}
    shape = graph.shape_of(graph.outputs[0]) if len(graph.outputs) == 1 else None
    return _with_head(split, layers[0].name, in_head.values(), shape, note)


def _with_head(
    split: LayerGroups,
    name: str,
    layers: Iterable[keras.layers.Layer],
    shape: Shape | None,
    note: str,
) -> LayerGroups:
    head = LayerGroup(name_of_head(name, split.names), tuple(layers), shape)
    return LayerGroups([*split, head], has_head=True, note=note)


def _without_boundaries(split: LayerGroups) -> LayerGroups:
    """Drops the boundaries: a callback on a stock model cannot start the model at one."""
    return LayerGroups(LayerGroup(g.name, g.layers, g.output_shape) for g in split)


def _own_groups(layer: Any) -> LayerGroups | None:
    """The layer groups of a `PretrainedBackbone` inside a stock model."""
    own = getattr(layer, "layer_groups", None)
    return own if isinstance(own, LayerGroups) and not own.has_head else None


def _groups_of_backbone(layer: keras.layers.Layer, groups: Groups) -> LayerGroups:
    own = _own_groups(layer)
    if own is None:
        return _without_boundaries(backbone_groups(layer, groups))
    if groups != "auto":
        raise ValueError(
            f"The backbone {layer.name!r} has its own layer groups. Pass `groups` to "
            f"{type(layer).__name__} instead."
        )
    return _without_boundaries(own)


def _layers_with_variables(nodes: Iterable[Node]) -> list[keras.layers.Layer]:
    layers = {id(n.layer): n.layer for n in nodes if n.layer is not None}
    return [layer for layer in layers.values() if has_variables(layer)]


def _is_backbone(layer: Any) -> bool:
    is_candidate = isinstance(layer, keras.Model) or _own_groups(layer) is not None
    return is_candidate and has_variables(layer)


# --- Functional models ----------------------------------------------------------------------


def _find_backbone(
    model: keras.Model, graph: FunctionalGraph, head: str | None
) -> tuple[set[int], str]:
    """Returns the nodes of the backbone, and where the head was looked for."""
    if head is not None:
        first = graph.nodes[_named_head(model, graph, head)]
        return graph.upstream_of(first.reads), f"from layer {head!r} on, as given"
    nested = {id(n.top_level): n.top_level for n in graph.nodes if _is_backbone(n.top_level)}
    if len(nested) == 1:
        backbone = next(iter(nested.values()))
        return graph.upstream_of(_written_by(backbone, graph)), (
            f"after the nested model {backbone.name!r}"
        )
    last = last_reduction(graph)
    if nested and (last is None or not _lie_in_one_chain(nested.values(), last, graph)):
        names = ", ".join(repr(m.name) for m in nested.values())
        raise ValueError(
            f"{model.name!r} holds {len(nested)} nested models ({names}), so it is not clear "
            f"where its head begins. {HEAD_REMEDY}"
        )
    if last is None:
        raise ValueError(
            f"{model.name!r} holds no nested model and reduces no spatial or sequence axis for "
            f"good, so it is not clear where its head begins. {HEAD_REMEDY}"
        )
    name = last.operation.name
    if holds_variables(last):
        where = f"after {name!r}, the last reduction of the spatial or sequence axes"
        return graph.upstream_of(last.writes), where
    where = f"from {name!r} on, the last reduction of the spatial or sequence axes"
    return graph.upstream_of(last.reads), where


def _written_by(nested: keras.layers.Layer, graph: FunctionalGraph) -> list[Key]:
    return [key for node in graph.nodes if node.top_level is nested for key in node.writes]


def _lie_in_one_chain(
    nested: Iterable[keras.layers.Layer], last: Node, graph: FunctionalGraph
) -> bool:
    """Whether nested models follow one another, all before `last`: pieces of one backbone."""
    upstream = graph.upstream_of(last.reads)
    earlier: set[int] = set()
    for part in nested:
        own = {i for i, node in enumerate(graph.nodes) if node.top_level is part}
        if not own <= upstream or not earlier <= graph.upstream_of(_written_by(part, graph)):
            return False
        earlier |= own
    return True


def _named_head(model: keras.Model, graph: FunctionalGraph, head: str) -> int:
    names = [n.layer.name if n.layer is not None else "" for n in graph.nodes]
    outer = [getattr(n.top_level, "name", "") for n in graph.nodes]
    for candidates in (outer, names):
        if head in candidates:
            return candidates.index(head)
    known = [n for n in dict.fromkeys([*names, *outer]) if n]
    raise ValueError(
        f"{model.name!r} has no layer {head!r}.{_checks.did_you_mean(head, known)} "
        "`head` names the first layer of the head."
    )


# --- Subclassed models ----------------------------------------------------------------------


def _groups_of_layers(model: keras.Model, groups: Groups, head: str | None) -> LayerGroups:
    """A subclassed model: its top-level layers, in the order in which they were made."""
    layers = [layer for layer in model.layers if has_variables(layer)]
    start, note = _head_of_layers(model, layers, head)
    nested = [i for i, layer in enumerate(layers) if i != start and _is_backbone(layer)]
    if start == 0 and len(nested) == 1:
        # The head was created before the backbone that it follows.
        layers.insert(0, layers.pop(nested[0]))
        start = 1
    if not 0 < start < len(layers):
        raise ValueError(
            f"The head of {model.name!r} was looked for {note}, but that leaves no "
            f"{'backbone before it' if start == 0 else 'weights in the head'}. The layers of a "
            "subclassed model are taken in the order in which they were created: "
            f"{', '.join(la.name for la in layers)}. Create the backbone before the head in "
            "`__init__`, or name the first layer of the head: "
            "GradualUnfreezing(plan, head='first_head_layer')."
        )
    covered = {id(v) for v in variables_that_may_train(layers)}
    loose = [v.path for v in variables_that_may_train([model]) if id(v) not in covered]
    if loose:
        raise ValueError(
            f"{model.name!r} has weights that belong to no layer ({', '.join(loose[:3])}), so no "
            "layer group can hold them. Put them into a layer."
        )
    held = {id(v) for v in variables_that_may_train(layers[:start])}
    shared = [v.path for v in variables_that_may_train(layers[start:]) if id(v) in held]
    if shared:
        raise ValueError(
            f"The head of {model.name!r}, looked for {note}, shares weights with its backbone "
            f"({shared[0]}). {HEAD_REMEDY}"
        )
    if start == 1 and _is_backbone(layers[0]):
        split = _groups_of_backbone(layers[0], groups)
    else:
        split = group_blocks(blocks_of_layers(layers[:start]), groups)
    return _with_head(split, layers[start].name, layers[start:], None, note)


def _head_of_layers(
    model: keras.Model, layers: list[keras.layers.Layer], head: str | None
) -> tuple[int, str]:
    """Returns the first layer of the head, and where it was looked for."""
    names = [layer.name for layer in layers]
    if head is not None:
        if head not in names:
            raise ValueError(
                f"{model.name!r} has no layer {head!r} with weights at its top level."
                f"{_checks.did_you_mean(head, names)} `head` names the first layer of the head."
            )
        return names.index(head), f"from layer {head!r} on, as given"
    attribute = getattr(model, "head", None)
    called_head = [i for i, la in enumerate(layers) if la is attribute or la.name == "head"]
    if called_head:
        return called_head[0], f"from layer {names[called_head[0]]!r} on"
    nested = [i for i, layer in enumerate(layers) if _is_backbone(layer)]
    if len(nested) != 1:
        raise ValueError(
            f"{model.name!r} is a subclassed model with {len(nested)} nested models, so it is "
            f"not clear where its head begins. Its layers are: {', '.join(names)}. "
            f"{HEAD_REMEDY}"
        )
    return nested[0] + 1, f"after the nested model {names[nested[0]]!r}"
