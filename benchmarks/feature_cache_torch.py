"""The frozen-backbone case of `benchmarks/feature_cache.py` in PyTorch and in Lightning.

`benchmarks/feature_cache.py` runs it where both are installed (requirements-torch.txt beside it);
the package does not use them. `torch` keeps tensors in `channels_last` order and runs the
backbone under `no_grad`, as an expert would; `lightning` uses the `BackboneFinetuning` callback
with the defaults, as its documentation shows.
"""

from __future__ import annotations

import json
import resource
import statistics
import sys
import time

import numpy as np
import torch
from torch.utils.data import DataLoader, TensorDataset

EPOCHS = 10
BATCH = 32


def data(count):
    """Returns the same random images and labels, channels first."""
    generator = np.random.default_rng(0)
    x = generator.random((count, 96, 96, 3), dtype="float32").transpose(0, 3, 1, 2)
    y = generator.integers(0, 10, count)
    return torch.from_numpy(np.ascontiguousarray(x)), torch.from_numpy(y)


def convolution(inputs, outputs, size=1, stride=1, groups=1, activation=True):
    """Returns a convolution, its BatchNorm and (where asked for) a ReLU6."""
    layers = [
        torch.nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False),
        torch.nn.BatchNorm2d(outputs),
    ]
    return torch.nn.Sequential(*layers, *([torch.nn.ReLU6()] if activation else []))


class InvertedResidual(torch.nn.Module):
    """The block of MobileNetV2 (Sandler et al., 2018, table 1)."""

    def __init__(self, inputs, outputs, stride, expansion):
        super().__init__()
        wide = inputs * expansion
        self.body = torch.nn.Sequential(
            *([convolution(inputs, wide)] if expansion > 1 else []),
            convolution(wide, wide, 3, stride, groups=wide),
            convolution(wide, outputs, activation=False),
        )
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x):
        return x + self.body(x) if self.adds else self.body(x)


def mobilenet_v2():
    """Returns MobileNetV2 without its classifier."""
    layers, inputs = [convolution(3, 32, 3, 2)], 32
    # Expansion, channels, repeats and first stride of each part.
    parts_of = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2)]
    parts_of += [(6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
    for expansion, outputs, repeats, first_stride in parts_of:
        for number in range(repeats):
            stride = first_stride if number == 0 else 1
            layers.append(InvertedResidual(inputs, outputs, stride, expansion))
            inputs = outputs
    return torch.nn.Sequential(*layers, convolution(320, 1280))


def parts():
    """Returns the backbone of MobileNetV2 and a head."""
    backbone = mobilenet_v2()
    head = torch.nn.Sequential(
        torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(1280, 10)
    )
    return backbone, head


def run_torch(count):
    """Trains the head with a plain loop; returns the time at which each epoch ended."""
    x, y = data(count)
    backbone, head = parts()
    backbone = backbone.eval().to(memory_format=torch.channels_last)
    x = x.contiguous(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(head.parameters())
    loss_of = torch.nn.CrossEntropyLoss()
    began, ends = time.perf_counter(), []
    for _ in range(EPOCHS):
        for rows in torch.randperm(count).split(BATCH):
            with torch.no_grad():
                features = backbone(x[rows])
            loss = loss_of(head(features), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        ends.append(time.perf_counter())
    return began, ends


def run_lightning(count):
    """Trains the head with Lightning's `BackboneFinetuning`, which keeps the backbone frozen."""
    import lightning
    from lightning.pytorch.callbacks import BackboneFinetuning, Callback

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.backbone, self.head = parts()

        def training_step(self, batch, _):
            x, y = batch
            return torch.nn.functional.cross_entropy(self.head(self.backbone(x)), y)

        def configure_optimizers(self):
            trained = [p for p in self.parameters() if p.requires_grad]
            return torch.optim.Adam(trained)

    ends = []

    class Timer(Callback):
        def on_train_epoch_end(self, *_):
            ends.append(time.perf_counter())

    x, y = data(count)
    loader = DataLoader(TensorDataset(x, y), batch_size=BATCH, shuffle=True)
    trainer = lightning.Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[BackboneFinetuning(unfreeze_backbone_at_epoch=EPOCHS + 1), Timer()],
    )
    began = time.perf_counter()
    trainer.fit(Module(), loader)
    return began, ends


def main():
    """Runs one side and prints what was measured as JSON."""
    side, count = sys.argv[1], int(sys.argv[2])
    began, ends = (run_torch if side == "torch" else run_lightning)(count)
    result = {
        "seconds": ends[-1] - began,
        "later_epoch": statistics.median(np.diff(ends)),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "stored": None,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
