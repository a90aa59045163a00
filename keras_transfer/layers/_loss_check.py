"""Whether a loss takes what a head returns: probabilities or logits."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras

from keras_transfer import _keras_internals

_PROBABILITIES = ("softmax", "sigmoid", "hard_sigmoid")


def check_loss_matches_activation(loss: Any, activation: Any) -> None:
    """Checks that a head's activation and a loss's `from_logits` agree.

    A loss that takes probabilities for logits, or logits for probabilities, trains to
    something, only badly. Losses without `from_logits` (mean squared error, say) and
    activations that are neither probabilities nor linear are let pass.

    Args:
        loss: What `compile` was given: a name (which means `from_logits=False`), a
            `keras.losses.Loss`, a function, or a list or dict of them.
        activation: The head's activation: a name, a function, an activation layer, or
            `None` for linear.

    Raises:
        ValueError: If one of the losses disagrees with the activation.

    Example:

    >>> check_loss_matches_activation("sparse_categorical_crossentropy", "softmax")
    """
    name = _activation_name(activation)
    if name in _PROBABILITIES:
        returns_logits = False
    elif name == "linear":
        returns_logits = True
    else:
        return
    for one in _flatten(loss):
        if _from_logits(one) == (not returns_logits):
            raise ValueError(_message(one, name))


def last_operation(head: keras.layers.Layer) -> Any:
    """Returns what computes a head's output: the head itself, or what ends a nested model.

    Args:
        head: Layer or model. A functional model ends in the layer or operation of its one
            output, a `keras.Sequential` in its last layer; others are returned as they are.
    """
    while not hasattr(head, "activation"):
        if isinstance(head, keras.Sequential) and head.layers:
            head = head.layers[-1]
            continue
        functional = _keras_internals.functional_of(head)
        if functional is None or isinstance(functional.output, list | tuple | dict):
            return head
        head = _keras_internals.operation_of(functional.output)
    return head


def _message(loss: Any, activation: str) -> str:
    shown = repr(loss) if isinstance(loss, str) else _class_or_function_name(loss)
    if activation == "linear":
        return (
            "The head returns logits (no activation), but the loss expects probabilities "
            f"(from_logits=False). Received: loss={shown}, activation=None. Give the head "
            "activation='softmax' (one of several classes) or activation='sigmoid' (yes or no, "
            "several labels), or pass a loss object with from_logits=True."
        )
    return (
        f"The head returns probabilities (activation={activation!r}), but the loss expects "
        f"logits (from_logits=True). Received: loss={shown}, activation={activation!r}. "
        "Leave out from_logits=True, or give the head activation=None."
    )


def _class_or_function_name(loss: Any) -> str:
    if isinstance(loss, keras.losses.Loss):
        return type(loss).__name__
    return str(getattr(loss, "__name__", type(loss).__name__))


def _activation_name(activation: Any) -> str:
    if activation is None:
        return "linear"
    if isinstance(activation, keras.layers.Softmax):
        return "softmax"
    if isinstance(activation, keras.layers.Activation):
        activation = activation.activation
    if isinstance(activation, str):
        activation = keras.activations.get(activation)
    return str(getattr(activation, "__name__", ""))


def _flatten(loss: Any) -> Iterator[Any]:
    if isinstance(loss, Mapping):
        loss = list(loss.values())
    if isinstance(loss, list | tuple):
        for one in loss:
            yield from _flatten(one)
    elif loss is not None:
        yield loss


def _from_logits(loss: Any) -> bool | None:
    """Returns what the loss says about logits, or `None` where it says nothing."""
    if isinstance(loss, str):
        try:
            loss = keras.losses.get(loss)
        except ValueError:
            return None  # `compile` will say that there is no such loss, and say it better
    if hasattr(loss, "from_logits"):
        return bool(loss.from_logits)
    if isinstance(loss, keras.losses.Loss) or not callable(loss):
        return None
    return _default_from_logits(loss)


def _default_from_logits(function: Callable[..., Any]) -> bool | None:
    try:
        parameter = inspect.signature(function).parameters.get("from_logits")
    except (TypeError, ValueError):  # a callable without a signature
        return None
    if parameter is None or not isinstance(parameter.default, bool):
        return None
    return parameter.default
