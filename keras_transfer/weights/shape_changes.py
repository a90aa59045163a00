"""Changes of a weight's shape that have a standard meaning, each under a name."""

from __future__ import annotations

import collections
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from keras_transfer import _checks
from keras_transfer.weights.naming import NamedWeight

Array = NDArray[Any]

FIRST_CONV = ("sum", "mean")
LAYOUTS = ("keras", "torch")
_CONVOLUTIONS = (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)
_TRANSPOSED = (
    keras.layers.Conv1DTranspose,
    keras.layers.Conv2DTranspose,
    keras.layers.Conv3DTranspose,
)
_DEPTHWISE = (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)
_RECURRENT = (keras.layers.GRUCell, keras.layers.LSTMCell, keras.layers.SimpleRNNCell)


def first_convolution_kernel(weights: Sequence[NamedWeight]) -> NamedWeight | None:
    """Returns the kernel of the first convolution in layer order, if there is one."""
    for weight in weights:
        if isinstance(weight.layer, _CONVOLUTIONS) and weight.variable.name == "kernel":
            return weight
    return None


def differ_in_channels_only(source: tuple[int, ...], target: tuple[int, ...]) -> bool:
    """Whether two convolution kernels differ in the number of input channels alone."""
    if len(source) != len(target) or len(source) < 3:
        return False
    return source[:-2] == target[:-2] and source[-1] == target[-1] and source[-2] != target[-2]


def change_channels(kernel: Array, channels: int, how: str) -> Array:
    """Makes a convolution kernel fit another number of input channels.

    Args:
        kernel: Kernel of shape `(*window, channels, filters)`.
        channels: Number of input channels wanted. At least 1.
        how: `"sum"`: every channel gets the sum over the old channels divided by
            `channels`; an input whose channels are all equal gives what the old
            kernel gives (a grey image copied to RGB). `"mean"`: every channel gets the
            mean over the old ones; each new channel weighs as much as an old one did.

    Returns:
        Kernel of shape `(*window, channels, filters)`.
    """
    wide = kernel.astype(np.float64)
    if how == "sum":
        one = wide.sum(axis=-2, keepdims=True) / channels
    else:
        one = wide.mean(axis=-2, keepdims=True)
    result: Array = np.repeat(one, channels, axis=-2).astype(kernel.dtype)
    return result


def checked_class_names(names: Any) -> tuple[list[str], list[str]]:
    """Checks `class_names`: two lists of different names with at least one in common."""
    if not isinstance(names, tuple | list) or len(names) != 2 or isinstance(names[0], str):
        raise TypeError(
            "`class_names` must be a pair: the source's class names in output order, and the "
            f"target's. Received: class_names={names!r}"
        )
    lists = [[str(name) for name in each] for each in names]
    for each, owner in zip(lists, ("source", "target"), strict=True):
        twice = [name for name, count in collections.Counter(each).items() if count > 1]
        if twice:
            raise ValueError(
                f"`class_names` must be different within a model. Received twice for the {owner}: "
                f"{', '.join(map(repr, twice[:5]))}"
            )
    if not set(lists[0]) & set(lists[1]):
        first = lists[1][0] if lists[1] else ""
        raise ValueError(
            "`class_names` must have a class in common. Received: none of the target's "
            f"{len(lists[1])} names ({', '.join(map(repr, lists[1][:5]))}, ...) is among the "
            f"source's {len(lists[0])}.{_checks.did_you_mean(first, lists[0])}"
        )
    return lists[0], lists[1]


def copy_classes(
    source: Array, target: Array, source_names: Sequence[str], target_names: Sequence[str]
) -> tuple[Array, int]:
    """Copies the outputs of the classes that both models have; the others stay the target's.

    Args:
        source: Classifier weight whose last axis runs over `source_names`.
        target: Classifier weight whose last axis runs over `target_names`.
        source_names: Class names in output order.
        target_names: Class names in output order.

    Returns:
        The new weight, and the number of classes copied.
    """
    position = {name: index for index, name in enumerate(source_names)}
    shared = [index for index, name in enumerate(target_names) if name in position]
    result = np.array(target)
    result[..., shared] = source[..., [position[target_names[index]] for index in shared]]
    return result, len(shared)


def from_torch(array: Array, weight: NamedWeight) -> Array:
    """Brings a PyTorch weight to the axis order of the Keras layer it is for.

    PyTorch keeps outputs first (`Linear`: (out, in); convolutions: (out, in, *window)),
    Keras last. A square `Linear` weight has the right shape untransposed, so shapes
    alone would not show the mistake.
    """
    if isinstance(weight.layer, _RECURRENT):
        raise ValueError(
            "PyTorch orders a GRU's gates differently and keeps two biases for each recurrent "
            f"layer, so `source_layout='torch'` cannot convert {weight.path!r}. Bring its weights "
            "to Keras's form first, and map them with `source_layout='keras'`."
        )
    same_size = array.size == weight.parameters
    if weight.variable.name == "bias" and array.ndim == 1 and same_size:
        return array.reshape(weight.shape)  # EinsumDense keeps a bias per head.
    if not weight.variable.name.endswith("kernel"):
        return array
    if isinstance(weight.layer, _DEPTHWISE) and array.ndim == len(weight.shape):
        channels, multiplier = weight.shape[-2:]
        if array.shape[:2] == (channels * multiplier, 1):
            # PyTorch counts outputs channel by channel, the multiplier running fastest.
            split = array.reshape(channels, multiplier, *array.shape[2:])
            return np.moveaxis(split, (0, 1), (-2, -1))
        return array
    if isinstance(weight.layer, (*_CONVOLUTIONS, *_TRANSPOSED)) and array.ndim == len(weight.shape):
        return np.moveaxis(array, (0, 1), (-1, -2))
    if array.ndim == 2:
        turned = array.T
        # EinsumDense splits a Dense kernel's inputs or outputs into heads.
        return turned.reshape(weight.shape) if same_size and len(weight.shape) > 2 else turned
    return array
