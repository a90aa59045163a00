"""Any model of `keras.applications`, without its classifier, and the scaling that it needs."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

import keras


def model_names() -> list[str]:
    """Returns the names of the models in `keras.applications`."""
    return [name for name in dir(keras.applications) if name[:1].isupper()]


def keras_application(
    name: str, image_size: int, weights: str | None = "imagenet"
) -> tuple[keras.Model, Callable[[Any], Any]]:
    """Builds a model of `keras.applications` without its classifier.

    Args:
        name: Such as `"MobileNetV2"`.
        image_size: Height and width of the images, in pixels.
        weights: `"imagenet"` (Keras downloads them once) or `None` for random ones.

    Returns:
        The model, and the function that scales images in [0, 255] as its weights expect
        them. That differs: to [-1, 1], by the mean of each channel, or inside the model.

    Raises:
        ValueError: If there is no such model, or not for images of this size.
        OSError: If the weights could not be downloaded.

    Example:

    >>> from examples.pretrained.keras_applications import keras_application
    >>> model, preprocess = keras_application("MobileNetV2", 32, weights=None)
    >>> model.output_shape, float(preprocess(255.0))
    ((None, 1, 1, 1280), 1.0)
    """
    names = model_names()
    if name not in names:
        lower = {known.lower(): known for known in names}
        near = [lower[match] for match in difflib.get_close_matches(name.lower(), lower, n=3)]
        hint = f"Did you mean {' or '.join(near)}?" if near else "Try MobileNetV2."
        raise ValueError(f"keras.applications has no model {name!r}. {hint}")
    build = getattr(keras.applications, name)
    # The function lies in the public module that is named after the file of the model.
    module = getattr(keras.applications, build.__module__.rpartition(".")[2])
    try:
        model = build(weights=weights, include_top=False, input_shape=(image_size, image_size, 3))
    except ValueError as error:
        raise ValueError(
            f"{name} could not be made for images of {image_size}x{image_size} pixels: {error}"
        ) from error
    except Exception as error:
        # Keras raises a bare `Exception` where a download fails.
        raise OSError(f"The weights of {name} could not be downloaded: {error}") from error
    return model, module.preprocess_input
