"""What a trial's values change on the model itself: optimizer, head and backbone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras

from keras_transfer import _keras_internals
from keras_transfer.layers import ClassificationHead, RegressionHead
from keras_transfer.optimizers import find_discriminative


def compile_if_need_be(model: Any) -> None:
    """Compiles a model that is not compiled, with AdamW and the loss that its head suggests.

    Raises:
        ValueError: If the head is none of the package's, so that its loss is not known.
    """
    if model.compiled:
        return
    head = model.head
    if isinstance(head, ClassificationHead):
        is_sigmoid = head.activation is keras.activations.sigmoid
        is_softmax = head.activation is keras.activations.softmax
        kind = (
            keras.losses.BinaryCrossentropy if is_sigmoid
            else keras.losses.SparseCategoricalCrossentropy
        )  # fmt: skip
        loss = kind(from_logits=not (is_sigmoid or is_softmax))
        model.compile("adamw", loss, metrics=["accuracy"])
    elif isinstance(head, RegressionHead):
        model.compile("adamw", "mse", metrics=["mae"])
    else:
        raise ValueError(
            f"`build_model()` returned a model that is not compiled, and its head {head.name!r} "
            f"({type(head).__name__}) does not say which loss goes with it. Call "
            "model.compile(optimizer=..., loss=..., metrics=...) in `build_model`."
        )


def apply_settings(model: Any, values: Mapping[str, Any]) -> None:
    """Gives a compiled model what a trial's values say besides the plan.

    Raises:
        ValueError: If the model cannot take a value.
    """
    if "weight_decay" in values:
        optimizer = find_discriminative(model.optimizer)
        assert optimizer is not None
        optimizer.weight_decay = values["weight_decay"]
    if "head_dropout" in values:
        _set_dropout(model.head, values["head_dropout"])
    if "batch_norm" in values:
        _set_batch_norm(model.backbone, values["batch_norm"])


def _set_batch_norm(backbone: Any, policy: str) -> None:
    if policy == backbone.batch_norm:
        return
    # Made anew with this policy, so that what it cannot do is the error that it always is.
    type(backbone)(backbone.model, backbone.groups, policy)
    backbone.batch_norm = policy
    for layer in backbone.batch_norms:
        layer.trainable = policy != "freeze"


def _set_dropout(head: Any, rate: float) -> None:
    layers = [
        layer
        for layer in _keras_internals.flatten_layers(head)
        if isinstance(layer, keras.layers.Dropout)
    ]
    if not layers or any(layer.rate == 0 for layer in layers):
        raise ValueError(
            f"The search space has `head_dropout`, and the head {head.name!r} has no dropout layer "
            "whose rate could be set. Give it one in `build_model`: "
            "ClassificationHead(..., dropout=0.1)."
        )
    for layer in layers:
        layer.rate = rate
    if hasattr(head, "dropout"):
        head.dropout = rate
