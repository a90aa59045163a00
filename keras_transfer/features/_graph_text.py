"""A traced graph as text that does not depend on the names in it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from keras_transfer import _keras_internals

# Attributes that name things, or follow from the others.
NAMES = frozenset({"container", "shared_name", "config_proto", "config", "output_shapes"})


def describe_ancestors(graph: Any, outputs: Sequence[Any]) -> tuple[list[Any], list[str]]:
    """Describes the operations that a graph's outputs follow from.

    Args:
        graph: The graph of a `tf.function`.
        outputs: Tensors of it.

    Returns:
        The operations, each with its attributes and the numbers of what it reads, followed by
        the outputs; and the names of the tensors among them that stand for captured values, in
        the order in which they are met.
    """
    library = {f.signature.name: f for f in graph.as_graph_def().library.function}
    functions = _Functions(library)
    inside = {tensor.name for tensor in _keras_internals.captured_tensors(graph)}
    numbers: dict[str, int] = {}
    lines: list[Any] = []
    captured: list[str] = []
    stack = [(tensor.op, False) for tensor in reversed(list(outputs))]
    while stack:
        operation, is_ready = stack.pop()
        if operation.name in numbers:
            continue
        if not is_ready:
            stack.append((operation, True))
            stack += [(t.op, False) for t in reversed(list(operation.inputs))]
            continue
        numbers[operation.name] = len(numbers)
        captured += [t.name for t in operation.outputs if t.name in inside]
        reads = [(numbers[t.op.name], t.value_index) for t in operation.inputs]
        attributes = functions.attributes(operation.node_def.attr)
        lines.append([operation.type, attributes, reads])
    lines.append([(numbers[t.op.name], t.value_index) for t in outputs])
    return lines, captured


class _Functions:
    """Describes the functions that operations call (the bodies of loops), each once."""

    def __init__(self, library: Mapping[str, Any]) -> None:
        self._library = library
        self._described: dict[str, list[Any]] = {}

    def attributes(self, given: Mapping[str, Any]) -> list[Any]:
        """Describes an operation's attributes."""
        return [
            [name, self._value(given[name])]
            for name in sorted(given)
            if not name.startswith("_") and name not in NAMES
        ]

    def _value(self, value: Any) -> Any:
        if value.HasField("func"):
            return self._function(value.func.name)
        if value.HasField("list") and value.list.func:
            return [self._function(function.name) for function in value.list.func]
        return value.SerializeToString(deterministic=True).hex()

    def _function(self, name: str) -> list[Any]:
        if name not in self._described:
            function = self._library[name]
            numbers = {a.name: n for n, a in enumerate(function.signature.input_arg)}
            lines = []
            # Nodes may refer to later ones, so all are numbered first.
            numbers |= {node.name: len(numbers) + n for n, node in enumerate(function.node_def)}
            for node in function.node_def:
                reads = _renamed(node.input, numbers)
                lines.append([node.op, self.attributes(node.attr), reads])
            returns = [function.ret[a.name] for a in function.signature.output_arg]
            self._described[name] = [*lines, _renamed(returns, numbers)]
        return self._described[name]


def _renamed(references: Iterable[str], numbers: Mapping[str, int]) -> list[str]:
    """Puts numbers in the place of names in `name:output:index`."""
    renamed = []
    for reference in references:
        name, colon, output = reference.removeprefix("^").partition(":")
        renamed.append(f"{'^' if reference.startswith('^') else ''}{numbers[name]}{colon}{output}")
    return renamed
