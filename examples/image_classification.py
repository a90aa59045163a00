"""Fine-tunes an ImageNet network on 10 silhouettes of each of ten animals, and says if it helped.

Run it with `.venv/bin/python examples/image_classification.py` (after `make quickstart`). The
images come through TensorFlow Datasets, prepared offline; the network's first convolution is
summed over colours, since silhouettes have none. The rates are the quickstart's, which were chosen
on validation images; `--validate` measures there.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import keras_transfer as ktf
from examples._command_line import parse, planned
from examples._comparison import Contender, Result, compare, draw_accuracies, report
from examples.datasets.builders.animal_silhouettes import AnimalSilhouettes
from examples.pretrained.efficientnet_lite0 import efficientnet_lite0, preprocessing

SCRATCH = "from scratch"
PROBE = "linear probing"
FINE_TUNED = "probe, then top blocks"
PLANS = {
    PROBE: ktf.recipes.linear_probe(epochs=10, peak_lr=1e-2),
    FINE_TUNED: ktf.UnfreezingPlan(
        [
            ktf.Stage("probe", depth=1, epochs=10, peak_lr=1e-2),
            ktf.Stage(
                "top", depth=2, epochs=8, peak_lr=1e-3, lr_decay=0.3, schedule="warmup_cosine"
            ),
        ]
    ),
    SCRATCH: ktf.recipes.full_fine_tuning(epochs=20, peak_lr=1e-3, schedule="one_cycle"),
}


def backbone(image_size: int, pretrained: bool) -> ktf.layers.PretrainedBackbone:
    """Returns EfficientNet-Lite0 for grey images, with ImageNet weights or random ones."""
    shape = (image_size, image_size)
    grey = efficientnet_lite0(include_top=False, weights=None, input_shape=(*shape, 1))
    if pretrained:
        colour = efficientnet_lite0(include_top=False, input_shape=(*shape, 3))
        # A grey image gives just what its copy to three colours gave.
        ktf.weights.transfer_weights(colour, grey, first_conv="sum")
        return ktf.layers.PretrainedBackbone(grey, preprocess=preprocessing())
    untrained = ktf.layers.PretrainedBackbone(grey, batch_norm="train", preprocess=preprocessing())
    for layer in untrained.batch_norms:
        # With Keras's 0.99 the statistics would not have converged after so few steps.
        layer.momentum = 0.9
    return untrained


def new_model(image_size: int, pretrained: bool) -> ktf.TransferModel:
    """Puts a new head on the backbone, and compiles."""
    head = ktf.layers.ClassificationHead(num_classes=10, dropout=0.2)
    model = ktf.TransferModel(backbone(image_size, pretrained), head)
    model.compile(
        keras.optimizers.AdamW(1e-3, weight_decay=0.01),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    return model


def draw(
    results: Sequence[Result], test: tf.data.Dataset, names: Sequence[str], path: Path
) -> None:
    """Draws the accuracies, and test images with what the fine-tuned network calls them."""
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=(9, 5), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=[1.5, 1])
    draw_accuracies(results, above.subplots())
    images, labels = (np.concatenate(list(part)) for part in zip(*test.batch(100), strict=True))
    # The first test image of each class: chosen before anything was predicted.
    shown = [int(np.flatnonzero(labels == label)[0]) for label in range(10)]
    best = next(result for result in results if result.name == FINE_TUNED)
    for ax, index in zip(below.subplots(1, 10), shown, strict=True):
        ax.imshow(images[index, ..., 0], cmap="gray")
        right = best.predicted[index] == labels[index]
        ax.set_title(names[best.predicted[index]], color="#1a7f37" if right else "#c0392b")
        ax.set_xlabel("" if right else f"is {names[labels[index]]}")
        ax.set_xticks([], [])
        ax.set_yticks([], [])
    below.suptitle("First test image of each class, as the first fine-tuned network names it")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> list[Result]:
    """Runs the comparison; returns a result for each contender."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--per-class", type=int, default=10, help="labelled images of each class")
    parser.add_argument("--image-size", type=int, default=48, help="height and width, in pixels")
    parser.add_argument("--test-size", type=int, default=250)
    parser.add_argument("--probe", action="store_true", help="also train the head alone")
    options = parse(parser, arguments, output="outputs/image_classification.png")
    (pool, test), spec = ktf.data.load(
        AnimalSilhouettes,
        # Validation images are none of those that the training sets are drawn from.
        ["train[:80%]", "train[80%:]" if options.validate else f"test[:{options.test_size}]"],
        image_size=options.image_size,
        batch_size=None,
        data_dir=options.data_dir,
    )
    contenders = [
        Contender(
            name,
            functools.partial(new_model, options.image_size, pretrained=name != SCRATCH),
            planned(PLANS[name], options),
            baseline=None if name == SCRATCH else SCRATCH,
        )
        for name in PLANS
        if options.probe or name != PROBE
    ]
    shown = next(each for each in contenders if each.baseline and len(each.plan.stages) > 1)
    print(f"{shown.name}\n{ktf.describe(shown.model(), shown.plan)}\n")
    results = compare(
        contenders,
        pool,
        test,
        per_class=options.per_class,
        num_classes=10,
        batch_size=20,
        seeds=options.seeds,
        processes=options.processes,
    )
    print(f"\n{report(results)}")
    if not options.validate:
        draw(results, test, spec.class_names, options.output)
        print(f"Drawn: {options.output}")
    return results


if __name__ == "__main__":
    main()
