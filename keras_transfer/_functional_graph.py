"""The graph of a functional model as a flat list of nodes that can be run from any boundary.

Nested functional models are entered, so that a backbone wrapped once more can still be
cut inside. A *boundary* is a place between two nodes where one tensor is alive besides
what follows from the graph's own inputs (an articulation point of the graph): all that
lies behind it can be computed from that tensor.

Walking the nodes replaces sub-models (`keras.Model(inner_tensor, outer_tensor)`), because
a sub-model has one `training` flag for all its layers, loses implicit masks at its
inputs, and would have to be made anew for each cut.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras

from keras_transfer import _keras_internals

# A tensor of the graph: which call of which nested model it belongs to, and its identity.
Key = tuple[tuple[int, ...], int]
Run = Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Node:
    """One call of an operation, or (without one) the way into or out of a nested model."""

    operation: Any
    reads: tuple[Key, ...]
    writes: tuple[Key, ...]
    shapes: tuple[tuple[int | None, ...], ...]
    arguments: Any = None
    tensors: tuple[int, ...] = ()
    enters: Any = None
    inside: tuple[keras.layers.Layer, ...] = ()  # the nested models around it, outermost first

    @property
    def top_level(self) -> Any:
        """The operation or nested model that the outermost model calls."""
        return self.inside[0] if self.inside else self.operation

    @property
    def layer(self) -> keras.layers.Layer | None:
        """The layer that this node calls, if it calls one."""
        return self.operation if isinstance(self.operation, keras.layers.Layer) else None


@dataclasses.dataclass(frozen=True)
class Boundary:
    """A place where a functional graph can be cut.

    Attributes:
        index: `nodes[:index]` lie before the boundary.
        key: The one tensor alive there.
        shape: Its shape, with the batch.
        side_nodes: Nodes before the boundary that are run again behind it: they follow
            from the graph's inputs without weights (a mask made from token ids, say).
        side_inputs: Positions of the graph's inputs that are still read behind it.
    """

    index: int
    key: Key
    shape: tuple[int | None, ...]
    side_nodes: tuple[int, ...]
    side_inputs: tuple[int, ...]


class FunctionalGraph:
    """Nodes and boundaries of a functional or Sequential model.

    Args:
        model: A built model whose `call` is the functional one.
    """

    def __init__(self, model: keras.Model) -> None:
        functional = _keras_internals.functional_of(model)
        if functional is None:
            raise TypeError(f"{model.name!r} is not a built functional or Sequential model.")
        self.functional = functional
        self.nodes: list[Node] = []
        self._nested_calls = 0
        self._append_nodes((), functional, ())
        self.inputs = [_key((), t) for t in _keras_internals.graph_inputs(functional)]
        self.outputs = [_key((), t) for t in _keras_internals.graph_outputs(functional)]
        self._shapes = {
            _key((), t): tuple(t.shape) for t in _keras_internals.graph_inputs(functional)
        }
        for node in self.nodes:
            self._shapes.update(zip(node.writes, node.shapes, strict=True))
        self.boundaries = self._find_boundaries()

    def _append_nodes(
        self, scope: tuple[int, ...], functional: Any, inside: tuple[keras.layers.Layer, ...]
    ) -> None:
        for node in _keras_internals.graph_nodes(functional):
            operation = node.operation
            nested = _keras_internals.functional_of(operation)
            called = Node(
                operation if nested is None else None,
                tuple(dict.fromkeys(_key(scope, t) for t in node.input_tensors)),
                tuple(_key(scope, t) for t in node.outputs),
                tuple(tuple(t.shape) for t in node.outputs),
                arguments=node.arguments,
                tensors=tuple(dict.fromkeys(id(t) for t in node.input_tensors)),
                inside=inside,
            )
            if nested is None:
                self.nodes.append(called)
                continue
            self._nested_calls += 1
            inner = (*scope, self._nested_calls)
            ways_in = _keras_internals.graph_inputs(nested)
            ways_out = _keras_internals.graph_outputs(nested)
            around = (*inside, operation)
            way_in = dataclasses.replace(
                called,
                writes=tuple(_key(inner, t) for t in ways_in),
                shapes=tuple(tuple(t.shape) for t in ways_in),
                enters=nested,
                inside=around,
            )
            way_out = dataclasses.replace(
                called,
                reads=tuple(_key(inner, t) for t in ways_out),
                arguments=None,
                tensors=(),
                inside=around,
            )
            self.nodes.append(way_in)
            self._append_nodes(inner, nested, around)
            self.nodes.append(way_out)

    def upstream_of(self, keys: Sequence[Key]) -> set[int]:
        """Returns the positions of the nodes that tensors of the graph are computed from."""
        written = {key: index for index, node in enumerate(self.nodes) for key in node.writes}
        return set(self._recomputed(keys, written)[0])

    def reordered(self, first: set[int]) -> FunctionalGraph:
        """Returns the same graph with some nodes before all others.

        Args:
            first: Positions of nodes that depend on no other node (`upstream_of`).
        """
        graph = copy.copy(self)
        graph.nodes = [self.nodes[i] for i in sorted(first)]
        graph.nodes += [node for i, node in enumerate(self.nodes) if i not in first]
        graph.boundaries = graph._find_boundaries()
        return graph

    def shapes_read_by(self, node: Node) -> list[tuple[int | None, ...]]:
        """Returns the shapes of the tensors that a node reads, with the batch."""
        return [self._shapes[key] for key in node.reads]

    def shape_of(self, key: Key) -> tuple[int | None, ...]:
        """Returns the shape of a tensor of the graph, with the batch."""
        return self._shapes[key]

    def _find_boundaries(self) -> list[Boundary]:
        last_read = dict.fromkeys(self.inputs, -1)
        for index, node in enumerate(self.nodes):
            last_read.update(dict.fromkeys(node.reads, index))
        last_read.update(dict.fromkeys(self.outputs, len(self.nodes)))
        free = self._keys_without_weights()
        written: dict[Key, int] = {}
        last_use = self._last_use_of_variables()
        shared: set[int] = set()
        alive: set[Key] = set(self.inputs)
        boundaries = []
        for index, node in enumerate(self.nodes):
            written.update(dict.fromkeys(node.writes, index))
            alive.update(node.writes)
            alive = {key for key in alive if last_read.get(key, -1) > index}
            if node.layer is not None:
                shared.update(id(v) for v in node.layer.variables)
            # Variables used on both sides (a layer called twice, tied weights) would belong
            # to two groups.
            shared = {variable for variable in shared if last_use[variable] > index}
            carried = [key for key in alive if key not in free]
            if len(carried) == 1 and not shared:
                side = [key for key in alive if key in free]
                side_nodes, side_inputs = self._recomputed(side, written)
                key = carried[0]
                boundaries.append(
                    Boundary(index + 1, key, self._shapes[key], side_nodes, side_inputs)
                )
        return boundaries

    def _keys_without_weights(self) -> set[Key]:
        free = set(self.inputs)
        for node in self.nodes:
            layer = node.layer
            if all(key in free for key in node.reads) and (layer is None or not layer.variables):
                free.update(node.writes)
        return free

    def _last_use_of_variables(self) -> dict[int, int]:
        layers = ((i, node.layer) for i, node in enumerate(self.nodes) if node.layer is not None)
        return {id(variable): i for i, layer in layers for variable in layer.variables}

    def _recomputed(
        self, keys: Sequence[Key], written: Mapping[Key, int]
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        nodes: set[int] = set()
        inputs: set[int] = set()
        pending = list(keys)
        while pending:
            key = pending.pop()
            if key not in written:
                inputs.add(self.inputs.index(key))
            elif written[key] not in nodes:
                nodes.add(written[key])
                pending.extend(self.nodes[written[key]].reads)
        return tuple(sorted(nodes)), tuple(sorted(inputs))

    def run(
        self,
        values: dict[Key, Any],
        call: Run,
        *,
        nodes: Sequence[int] | range | None = None,
    ) -> dict[Key, Any]:
        """Runs nodes in order, adding what they write to `values`.

        Args:
            values: What is known: the graph's inputs, or what is alive at a boundary.
            call: Calls an operation: `call(operation, args, kwargs)`.
            nodes: Positions of the nodes to run; all of them by default.

        Returns:
            `values`.
        """
        for index in range(len(self.nodes)) if nodes is None else nodes:
            node = self.nodes[index]
            if node.arguments is None:  # the way out of a nested model
                outputs = [values[key] for key in node.reads]
            else:
                known = {t: values[key] for t, key in zip(node.tensors, node.reads, strict=True)}
                args, kwargs = _keras_internals.fill_in_arguments(node.arguments, known)
                if node.enters is not None:
                    outputs = _enter(node.enters, args, kwargs)
                else:
                    outputs = keras.tree.flatten(call(node.operation, args, kwargs))
            values.update(zip(node.writes, outputs, strict=True))
        return values

    def pack_outputs(self, outputs: list[Any]) -> Any:
        """Gives flat outputs the structure that calling the model returns."""
        return _keras_internals.pack_outputs(self.functional, outputs)


def _enter(functional: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """Does what a functional model does to its arguments before its graph runs."""
    inputs, mask = _functional_arguments(*args, **kwargs)
    tensors = _keras_internals.standardize_inputs(functional, inputs)
    for tensor, its_mask in zip(tensors, keras.tree.flatten(mask), strict=False):
        if its_mask is not None:
            _keras_internals.set_mask(tensor, its_mask)
    return tensors


def _functional_arguments(
    inputs: Any, training: Any = None, mask: Any = None, **kwargs: Any
) -> tuple[Any, Any]:
    """Returns inputs and mask out of the arguments that a functional model was called with."""
    return inputs, mask


def _key(scope: tuple[int, ...], tensor: Any) -> Key:
    return scope, id(tensor)
