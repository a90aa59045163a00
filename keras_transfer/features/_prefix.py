"""The prefix of a `TransferModel`: what runs once for each example while it is frozen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_transfer import _keras_internals
from keras_transfer.features._entry import EntryPoint
from keras_transfer.features._folding import fold_variables
from keras_transfer.features._on_replicas import can_share, shared
from keras_transfer.layers._head_split import split_head

# Operations that keep state and yet give the same result each time, as long as no variable is
# written to. Everything else with state is taken as not deterministic.
SAFE_STATEFUL_OPERATIONS = frozenset(
    {
        "ReadVariableOp",
        "ResourceGather",
        "ResourceGatherNd",
        "VarHandleOp",
        "VarIsInitializedOp",
        "Assert",
        "PartitionedCall",
        "StatefulPartitionedCall",
        "If",
        "StatelessIf",
        "While",
        "StatelessWhile",
        "TensorListReserve",
        # What loops push and pop is local to one run.
        "StackV2",
        "StackPushV2",
        "StackPopV2",
        "XlaCallModule",
    }
)


class NotDeterministicError(ValueError):
    """Running the prefix of a model once is not the same as running it each time."""


class Prefix:
    """Runs a model up to one or several entry points at once, as frozen layers run.

    Args:
        model: A built `TransferModel` whose backbone is functional.
        points: Where to stop; the features of all of them come from one run.
        fold_constants: Whether to fold the variables into constants, which is faster and
            moves features by rounding.

    Raises:
        NotDeterministicError: When it is first called, if a random layer lies in the prefix.
    """

    def __init__(
        self, model: Any, points: Sequence[EntryPoint], *, fold_constants: bool = False
    ) -> None:
        self.model = model
        self.points = sorted(points)
        self.fold_constants = fold_constants
        self._adds_losses = False
        self._folded: dict[int, Callable[[Any], dict[str, Any]]] = {}
        # AutoGraph, which Keras does without as well, would take several seconds.
        self._function = tf.function(self._run, autograph=False)

    def signature(self, inputs: Any) -> dict[str, tf.TensorSpec]:
        """Returns the shapes and types of the features of inputs of a `tf.TensorSpec` structure.

        Raises:
            NotDeterministicError: If a random layer lies in the prefix.
        """
        outputs = self.concrete(inputs).structured_outputs
        return {k: tf.TensorSpec(t.shape, t.dtype) for k, t in outputs.items()}

    def function(self, inputs: Any) -> Callable[[Any], dict[str, Any]]:
        """Returns the traced prefix for inputs of a `tf.TensorSpec` structure.

        All replicas of a machine run it, each on its share of a batch; folded constants are on
        one device.
        """
        concrete = self.concrete(inputs)
        if not self.fold_constants:
            strategy = self.model.distribute_strategy
            if can_share(strategy):
                return shared(self._run, concrete, strategy)
            return concrete  # type: ignore[no-any-return]
        if id(concrete) not in self._folded:
            self._folded[id(concrete)] = fold_variables(concrete)
        return self._folded[id(concrete)]

    def concrete(self, inputs: Any) -> Any:
        """Returns the concrete function for inputs of a `tf.TensorSpec` structure.

        Raises:
            NotDeterministicError: If a random layer lies in the prefix.
        """
        concrete = self._function.get_concrete_function(inputs)
        unsafe = _keras_internals.unsafe_operations(concrete.graph, SAFE_STATEFUL_OPERATIONS)
        if unsafe:
            raise NotDeterministicError(
                f"the frozen part of the model is not deterministic (it runs {unsafe[0]})"
            )
        if self._adds_losses:
            raise NotDeterministicError(
                "a frozen layer adds to the loss when it runs (activity_regularizer or add_loss)"
            )
        return concrete

    def _run(self, inputs: Any) -> dict[str, Any]:
        starts = {point.start for point in self.points}
        _keras_internals.take_losses_of_call(self.model.backbone)  # what earlier calls left
        alive = self.model.backbone.features_at(inputs, starts)
        self._adds_losses = _keras_internals.take_losses_of_call(self.model.backbone)
        fields: dict[str, Any] = {}
        for point in self.points:
            tensors = alive[point.start]
            if point.pooled:
                split = split_head(self.model.head)
                assert split is not None
                features = self.model.backbone.pack_outputs(tensors)
                _keras_internals.take_losses_of_call(self.model.head)
                tensors = [split.pool(features)]
                self._adds_losses |= _keras_internals.take_losses_of_call(self.model.head)
            fields.update(point.pack(tensors))
        return fields


def deepest_point(model: Any, trains: Sequence[Any]) -> EntryPoint | None:
    """Returns the last entry point before everything that trains, or `None` if there is none.

    Args:
        model: A built `TransferModel`.
        trains: The variables that train.
    """
    backbone = model.backbone
    if not backbone.is_functional:
        return None
    ids = {id(v) for v in trains}
    frozen = 0
    for group in backbone.layer_groups:
        if any(id(v) in ids for v in group.variables):
            break
        frozen += 1
    n_groups = len(backbone.layer_groups)
    if frozen == n_groups:
        return EntryPoint(n_groups, pooled=split_head(model.head) is not None)
    while frozen and backbone.layer_groups[frozen - 1].boundary is None:
        frozen -= 1
    return EntryPoint(frozen) if frozen else None


def input_signature(inputs: Any) -> Any:
    """Returns the `tf.TensorSpec`s of a batch of inputs, whatever the number of its examples."""
    return keras.tree.map_structure(
        lambda t: tf.TensorSpec((None, *t.shape[1:]), tf.as_dtype(t.dtype)), inputs
    )
