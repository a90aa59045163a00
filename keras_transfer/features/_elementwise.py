"""Tells whether a function on a batch treats its examples one by one, whatever their places."""

from __future__ import annotations

from typing import Any

from keras_transfer import _keras_internals

# Operations that treat the examples of a batch one by one, whatever else is in it.
ELEMENTWISE = frozenset(
    {
        "Abs",
        "AddV2",
        "Cast",
        "ClipByValue",
        "Const",
        "Identity",
        "IdentityN",
        "Maximum",
        "Minimum",
        "Mul",
        "NoOp",
        "OneHot",
        "Placeholder",
        "RealDiv",
        "ResizeArea",
        "ResizeBicubic",
        "ResizeBilinear",
        "ResizeNearestNeighbor",
        "Square",
        "Sub",
    }
)


def is_elementwise(graph: Any) -> bool:
    """Whether a function on a batch treats its examples one by one, whatever their places.

    Args:
        graph: The graph of the function of a `map`.
    """
    fixed = {tensor.name for tensor in _keras_internals.captured_tensors(graph)}
    for operation in _keras_internals.operations(graph):
        if operation.type not in ELEMENTWISE:
            return False
        inputs = list(operation.inputs)
        if operation.type == "IdentityN":
            pairs = zip(inputs, operation.outputs, strict=True)
            fixed.update(out.name for given, out in pairs if given.name in fixed)
        elif all(t.name in fixed for t in inputs):
            if operation.type != "Placeholder":
                fixed.update(out.name for out in operation.outputs)
        elif not _is_by_example(inputs, fixed):
            return False
    return True


def _is_by_example(inputs: list[Any], fixed: set[str]) -> bool:
    ranks = {t.shape.rank for t in inputs if t.name not in fixed}
    # (batch, 1) with (batch,) broadcasts to (batch, batch), which mixes examples.
    if len(inputs) > 1 and (len(ranks) > 1 or None in ranks):
        return False
    # What is the same for each batch must not reach its first axis: it would tell places apart.
    (rank,) = ranks
    shapes = [t.shape for t in inputs if t.name in fixed]
    return all(
        s.rank is not None and (s.rank < rank or (s.rank == rank and s[0] == 1)) for s in shapes
    )
