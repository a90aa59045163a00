"""A traced function with its variables folded into constants, which lets TensorFlow merge more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from keras_transfer import _keras_internals


def fold_variables(concrete: Any) -> Callable[[Any], Any]:
    """Returns a concrete function with its variables folded into constants.

    BatchNorms are then merged into convolutions. The graph is imported once, with a constant
    wherever a variable was read: TensorFlow's own converter copies it twice more, which takes
    three times as long. It has to help where a loop reads variables itself.

    Args:
        concrete: A concrete function.
    """
    constants = _constants_for_reads(concrete.graph)
    if constants is None:
        folded = _keras_internals.convert_variables(concrete)
    else:
        folded = _imported_with(concrete, constants)
    structure = concrete.structured_outputs

    def call(inputs: Any) -> Any:
        flat = [tf.convert_to_tensor(t) for t in tf.nest.flatten(inputs)]
        return tf.nest.pack_sequence_as(structure, folded(*flat))

    return call


def _constants_for_reads(graph: Any) -> dict[str, Any] | None:
    """Returns the values of what a graph reads from outside, by the name of the tensor read.

    `None` if a variable is handed on to another operation than one that reads it.
    """
    constants = {}
    for outside, inside in graph.captures:
        if inside.dtype != tf.resource:
            constants[inside.name] = outside.numpy()
            continue
        for operation in inside.consumers():
            if operation.type != "ReadVariableOp":
                return None
            (read,) = operation.outputs
            value = tf.raw_ops.ReadVariableOp(resource=outside, dtype=read.dtype)
            constants[read.name] = value.numpy()
    return constants


def _imported_with(concrete: Any, constants: dict[str, Any]) -> Any:
    """Imports a function's graph anew, with constants in the place of some tensors."""
    graph = concrete.graph
    inputs = concrete.inputs[: len(concrete.inputs) - len(graph.captures)]
    replaced = [tensor.op.name for tensor in concrete.inputs]
    replaced += [name.partition(":")[0] for name in constants]
    definition = _without(graph.as_graph_def(), frozenset(replaced))
    read = {name for node in definition.node for name in node.input}  # "x" stands for "x:0"
    constants = {k: v for k, v in constants.items() if k.removesuffix(":0") in read}

    def folded(*flat: tf.Tensor) -> list[tf.Tensor]:
        pairs = zip(inputs, flat, strict=True)
        known = {t.name: value for t, value in pairs if t.name.removesuffix(":0") in read}
        known |= {name: tf.constant(value) for name, value in constants.items()}
        outputs: list[tf.Tensor] = tf.graph_util.import_graph_def(
            definition, known, [tensor.name for tensor in concrete.outputs], name=""
        )
        return outputs

    signature = [tf.TensorSpec(tensor.shape, tensor.dtype) for tensor in inputs]
    traced = tf.function(folded, input_signature=signature, autograph=False)
    return traced.get_concrete_function()


def _without(definition: Any, names: frozenset[str]) -> Any:
    """Returns a graph without some of its nodes, and without waiting for them."""
    kept = tf.compat.v1.GraphDef(versions=definition.versions, library=definition.library)
    for node in definition.node:
        if node.name not in names:
            waits = [one for one in node.input if one.startswith("^") and one[1:] in names]
            copy = kept.node.add()
            copy.CopyFrom(node)
            for one in waits:
                copy.input.remove(one)
    return kept
