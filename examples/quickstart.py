"""Fine-tunes a pretrained network on 200 labels, and trains the same network from scratch.

Run it with `make quickstart`. The rates were chosen on the validation set; the test set is
looked at once, at the end.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import keras_transfer as ktf
from examples.datasets import animal_silhouettes as silhouettes
from examples.pretrained.efficientnet_lite0 import efficientnet_lite0, preprocessing
from examples.pretrained.keras_applications import keras_application


@dataclasses.dataclass(frozen=True)
class Result:
    """What came of one way to train.

    Attributes:
        name: The way.
        plan: The stages that ran.
        history: The columns that `fit` returned.
        accuracy: Share of the test images that were recognised.
        probabilities: Of each class, for each test image.
        seconds: Time that training took.
        parameters: Number of parameters that the last stage trained.
    """

    name: str
    plan: ktf.UnfreezingPlan
    history: dict[str, list[float]]
    accuracy: float
    probabilities: np.ndarray
    seconds: float
    parameters: int


def pretrained_backbone(name: str | None, size: int) -> ktf.layers.PretrainedBackbone:
    """Returns the backbone with its ImageNet weights and the scaling that they need.

    Args:
        name: A model of `keras.applications`; `None` for EfficientNet-Lite0 from a package.
        size: Height and width of the images, in pixels.
    """
    if name is None:
        model = efficientnet_lite0(include_top=False, input_shape=(size, size, 3))
        return ktf.layers.PretrainedBackbone(model, preprocess=preprocessing())
    try:
        model, scaling = keras_application(name, size)
    except ValueError as error:
        raise SystemExit(str(error)) from error
    except OSError as error:
        raise SystemExit(
            f"{error}\nWithout a network, run the quickstart without --backbone."
        ) from error
    return ktf.layers.PretrainedBackbone(model, preprocess=scaling)


def untrained_backbone(name: str | None, size: int) -> ktf.layers.PretrainedBackbone:
    """Returns the same network with random weights, and BatchNorms that learn from few steps.

    With Keras's momentum of 0.99 their statistics would not have converged after so few
    steps, and the comparison would be unfair.
    """
    if name is None:
        model = efficientnet_lite0(include_top=False, weights=None, input_shape=(size, size, 3))
        scaling = preprocessing()
    else:
        model, scaling = keras_application(name, size, weights=None)
    backbone = ktf.layers.PretrainedBackbone(model, batch_norm="train", preprocess=scaling)
    for layer in backbone.batch_norms:
        layer.momentum = 0.9
    return backbone


def train(
    name: str,
    backbone: ktf.layers.PretrainedBackbone,
    plan: ktf.UnfreezingPlan,
    sets: Sequence[silhouettes.Examples],
) -> Result:
    """Trains a head on the backbone under a plan, and evaluates it once on the test set."""
    training, validation, test = sets
    head = ktf.layers.ClassificationHead(num_classes=10, dropout=0.2)
    model = ktf.TransferModel(backbone, head)
    model.compile(
        keras.optimizers.AdamW(1e-3, weight_decay=0.01),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    print(f"\n== {name}\n{ktf.describe(model, plan)}\n")
    start = time.perf_counter()
    history = model.fit(
        training.images,
        training.labels,
        validation_data=(validation.images, validation.labels),
        callbacks=[ktf.callbacks.GradualUnfreezing(plan)],
    )
    seconds = time.perf_counter() - start
    probabilities = model.predict(test.images, verbose=0)
    return Result(
        name=name,
        plan=plan,
        history=history.history,
        accuracy=float(np.mean(probabilities.argmax(axis=1) == test.labels)),
        probabilities=probabilities,
        seconds=seconds,
        parameters=int(history.history["trainable_parameters"][-1]),
    )


def table(results: Sequence[Result], test_size: int) -> str:
    """Lays the results out, accuracy with its standard error on so many test images."""
    lines = [f"{'':24}{'test accuracy':>18}{'time':>9}{'parameters trained':>21}"]
    for result in results:
        error = (result.accuracy * (1 - result.accuracy) / test_size) ** 0.5
        accuracy = f"{result.accuracy:.3f} ± {error:.3f}"
        lines.append(
            f"{result.name:24}{accuracy:>18}{result.seconds:>7.0f} s{result.parameters:>21,}"
        )
    return "\n".join([*lines, f"({test_size:,} test images, looked at once)"])


def draw(results: Sequence[Result], test: silhouettes.Examples, path: Path) -> None:
    """Draws accuracy against the epoch for each result, and test images with predictions."""
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=(11, 6.2), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=[1.9, 1])
    for ax, result in zip(above.subplots(1, len(results), sharey=True), results, strict=True):
        ktf.plotting.plot_history(result.history, result.plan, ["accuracy"], [ax])
        title = f"{result.name}: {result.accuracy:.3f} on {len(test):,} test images"
        ax.set_title(title, pad=20)  # the names of the stages stand right above the axes
        ax.set_ylim(0, 1.02)
    # The first test image of each class: chosen before anything was predicted.
    shown = [int(np.flatnonzero(test.labels == label)[0]) for label in range(10)]
    predicted = results[0].probabilities.argmax(axis=1)
    for ax, index in zip(below.subplots(1, 10), shown, strict=True):
        ax.imshow(test.images[index].astype("uint8"))
        right = predicted[index] == test.labels[index]
        ax.set_title(
            silhouettes.CLASS_NAMES[predicted[index]], color="#1a7f37" if right else "#c0392b"
        )
        ax.set_xlabel("" if right else f"is {silhouettes.CLASS_NAMES[test.labels[index]]}")
        ax.set_xticks([], [])
        ax.set_yticks([], [])
    below.suptitle("First test image of each class, as the pretrained network names it")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> list[Result]:
    """Runs the quickstart; returns the results, the pretrained network's first."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", help="a model of keras.applications, such as MobileNetV2")
    parser.add_argument("--labels", type=int, default=200, help="number of training images")
    parser.add_argument("--test-size", type=int, default=1000, help="number of test images")
    parser.add_argument("--image-size", type=int, default=96, help="height and width, in pixels")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("outputs/quickstart.png"))
    parser.add_argument("--quick", action="store_true", help="a quarter of the epochs")
    options = parser.parse_args(arguments)
    keras.utils.set_random_seed(options.seed)
    share = 4 if options.quick else 1
    # As arrays: preparing the set for TensorFlow Datasets takes some seconds, which a first look
    # can do without. `image_classification.py` goes through its builder.
    sets = silhouettes.load(
        train_size=options.labels,
        validation_size=200,
        test_size=options.test_size,
        image_size=options.image_size,
        seed=options.seed,
    )
    fine_tuning = ktf.recipes.lp_ft(
        probe_epochs=8 // share,
        fine_tune_epochs=8 // share,
        probe_lr=1e-2,
        fine_tune_lr=1e-3,
        lr_decay=0.3,
        schedule="warmup_cosine",
    )
    from_scratch = ktf.recipes.full_fine_tuning(28 // share, 1e-3, schedule="one_cycle")
    size = options.image_size
    results = [
        train("pretrained, LP-FT", pretrained_backbone(options.backbone, size), fine_tuning, sets),
        train("from scratch", untrained_backbone(options.backbone, size), from_scratch, sets),
    ]
    print(f"\n{table(results, options.test_size)}")
    draw(results, sets[2], options.output)
    print(f"Drawn: {options.output}")
    return results


if __name__ == "__main__":
    main()
