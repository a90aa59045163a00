"""Trains a small CNN on MNIST, carries it over to 8x8 digits, and fine-tunes it on few labels.

Run it with `.venv/bin/python examples/source_to_target.py` (after `make quickstart`). Both sets
come through TensorFlow Datasets, prepared offline from what packages hold. The contrast is the
same network from scratch, with twice as many updates. The rates of both were chosen with
`--validate`: with other seeds, on digits that are in neither the training set nor the test set.
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
import tensorflow as tf

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import keras_transfer as ktf
from examples.datasets.builders.digits_8x8 import Digits8x8
from examples.datasets.builders.mnist_5k import Mnist5k

DATA_DIR = Path("outputs/tensorflow_datasets")
# An epoch repeats the few examples until there are so many, so that 10 labels get as many
# updates as 200.
EXAMPLES_PER_EPOCH = 200
BATCH_SIZE = 20
PLANS = {
    "carried over, LP-FT": ktf.recipes.lp_ft(
        probe_epochs=5, fine_tune_epochs=10, probe_lr=1e-2, fine_tune_lr=3e-4
    ),
    # Twice as many updates, since it has everything to learn.
    "from scratch": ktf.recipes.full_fine_tuning(epochs=30, peak_lr=3e-3, schedule="one_cycle"),
}
CARRIED, SCRATCH = PLANS


@dataclasses.dataclass(frozen=True)
class Examples:
    """Images and their digits.

    Attributes:
        images: `(examples, 8, 8, 1)`, float32 in [0, 1].
        labels: Digit of each image.
    """

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


@dataclasses.dataclass(frozen=True)
class Result:
    """What came of the runs on one number of examples per class.

    Attributes:
        per_class: Number of training examples of each digit.
        accuracies: For each contender, the accuracy with each seed, in the seeds' order.
        seconds: For each contender, the time that training took, all seeds together.
    """

    per_class: int
    accuracies: dict[str, np.ndarray]
    seconds: dict[str, float]


def source_task(data_dir: Path | str = DATA_DIR) -> tuple[Examples, Examples]:
    """Loads MNIST, shrunk to the target's size: 4,500 digits to train on, 500 to check with."""
    digits, _ = ktf.data.load(Mnist5k, ["train", "test"], batch_size=None, data_dir=data_dir)

    def shrink(image: tf.Tensor, label: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        # An MNIST digit has a margin of four pixels; one of the target task fills its image.
        return tf.image.resize(image[4:-4, 4:-4] / 255, (8, 8), antialias=True), label

    train, check = (as_arrays(split.map(shrink)) for split in digits)
    return train, check


def target_task(data_dir: Path | str = DATA_DIR) -> tuple[Examples, Examples]:
    """Loads the 8x8 digits: 797 of which some get a label, and a test set of 1,000."""
    digits, _ = ktf.data.load(Digits8x8, ["train", "test"], batch_size=None, data_dir=data_dir)
    pool, test = (as_arrays(split.map(lambda image, n: (image / 16, n))) for split in digits)
    return pool, test


def as_arrays(digits: tf.data.Dataset) -> Examples:
    """Reads a whole set."""
    images, labels = zip(*digits.batch(500).as_numpy_iterator(), strict=True)
    return Examples(np.concatenate(images), np.concatenate(labels))


def small_cnn() -> keras.Model:
    """Returns the network that both contenders share, with random weights."""
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(16, 3, padding="same", activation="relu", name="conv_1"),
            layers.Conv2D(16, 3, padding="same", activation="relu", name="conv_2"),
            layers.MaxPooling2D(name="pool_1"),
            layers.Conv2D(32, 3, padding="same", activation="relu", name="conv_3"),
            layers.Conv2D(32, 3, padding="same", activation="relu", name="conv_4"),
            layers.MaxPooling2D(name="pool_2"),
            layers.Flatten(name="flatten"),
            layers.Dense(64, activation="relu", name="features"),
        ],
        name="small_cnn",
    )


def new_head() -> ktf.layers.ClassificationHead:
    """Returns a head with random weights."""
    return ktf.layers.ClassificationHead(num_classes=10, dropout=0.2, name="head")


def train_source(epochs: int, data_dir: Path | str = DATA_DIR) -> keras.Model:
    """Trains the network on the source task."""
    train, check = source_task(data_dir)
    model = keras.Sequential([small_cnn(), new_head()], name="source")
    model.compile("adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(train.images, train.labels, batch_size=64, epochs=epochs, verbose=0)
    accuracy = model.evaluate(check.images, check.labels, return_dict=True, verbose=0)["accuracy"]
    print(f"Source task: {accuracy:.3f} of {len(check):,} other MNIST digits recognised.")
    return model


def carry_over(source: keras.Model) -> tuple[keras.Model, ktf.weights.TransferReport]:
    """Returns a new network with the layers of the source's, and what was carried over."""
    backbone = small_cnn()
    return backbone, ktf.weights.transfer_weights(source, backbone)


def transfer_model(backbone: keras.Model) -> ktf.TransferModel:
    """Puts a new head on the network, and compiles."""
    model = ktf.TransferModel(backbone, new_head())
    model.compile("adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def draw_labels(pool: Examples, per_class: int, seed: int) -> tuple[Examples, Examples]:
    """Draws `per_class` examples of each digit, and returns them and the others."""
    numbers = np.arange(len(pool))
    drawn, labels = ktf.data.few_shot((numbers, pool.labels), per_class, seed=seed)
    others = np.setdiff1d(numbers, drawn)
    return (
        Examples(pool.images[drawn], labels),
        Examples(pool.images[others], pool.labels[others]),
    )


def train(model: ktf.TransferModel, plan: ktf.UnfreezingPlan, examples: Examples) -> None:
    """Trains under a plan; each epoch takes every example equally often."""
    repeated = np.resize(np.arange(len(examples)), EXAMPLES_PER_EPOCH)
    model.fit(
        examples.images[repeated],
        examples.labels[repeated],
        batch_size=BATCH_SIZE,
        callbacks=[ktf.callbacks.GradualUnfreezing(plan, verbose=0)],
        verbose=0,
    )


def accuracy_on(model: keras.Model, examples: Examples) -> float:
    """Returns the share of the examples that the model recognises."""
    # Called, not `predict`: thirty models would each trace a function for one batch.
    probabilities = keras.ops.convert_to_numpy(model(examples.images, training=False))
    return float(np.mean(probabilities.argmax(axis=1) == examples.labels))


def compare(
    source: keras.Model, pool: Examples, test: Examples | None, per_class: int, seeds: Sequence[int]
) -> Result:
    """Trains both contenders with each seed, on the same examples.

    Args:
        source: The network that was trained on the source task.
        pool: Where the training examples are drawn from.
        test: What accuracy is measured on; `None` for the rest of the pool.
        per_class: Number of training examples of each digit.
        seeds: A seed draws the examples, the weights that start at random, and the batches.
    """
    accuracies: dict[str, list[float]] = {name: [] for name in PLANS}
    seconds = dict.fromkeys(PLANS, 0.0)
    for seed in seeds:
        few, others = draw_labels(pool, per_class, seed)
        for name, plan in PLANS.items():
            keras.utils.set_random_seed(seed)
            backbone = carry_over(source)[0] if name == CARRIED else small_cnn()
            model = transfer_model(backbone)
            start = time.perf_counter()
            train(model, plan, few)
            seconds[name] += time.perf_counter() - start
            accuracies[name].append(accuracy_on(model, others if test is None else test))
    return Result(per_class, {name: np.array(a) for name, a in accuracies.items()}, seconds)


def table(results: Sequence[Result], measured_on: str) -> str:
    """Lays the results out: mean and standard deviation over the seeds."""
    names = [*PLANS, "gain"]
    lines = [f"{'examples per class':>18}" + "".join(f"{name:>22}" for name in names)]
    for result in results:
        columns = [result.accuracies[name] for name in PLANS]
        # Seed by seed: both contenders saw the same examples.
        columns.append(result.accuracies[CARRIED] - result.accuracies[SCRATCH])
        cells = [f"{column.mean():.3f} ± {column.std(ddof=1):.3f}" for column in columns]
        lines.append(f"{result.per_class:>18}" + "".join(f"{cell:>22}" for cell in cells))
    times = [
        np.mean([r.seconds[name] / len(r.accuracies[name]) for r in results]) for name in PLANS
    ]
    lines.append(f"{'time of a run':>18}" + "".join(f"{f'{time:.1f} s':>22}" for time in times))
    seeds = len(results[0].accuracies[CARRIED])
    return "\n".join(
        [*lines, f"(accuracy on {measured_on}; mean ± standard deviation, {seeds} seeds)"]
    )


def draw(results: Sequence[Result], path: Path, data_dir: Path | str = DATA_DIR) -> None:
    """Draws a few digits of both tasks, and accuracy against the number of examples."""
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=(8, 4), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=[1, 1.7])
    tasks = {
        "source: MNIST, shrunk": source_task(data_dir)[0],
        "target: 8x8 digits": target_task(data_dir)[0],
    }
    for rows, (title, examples) in zip(left.subfigures(2, 1), tasks.items(), strict=True):
        rows.suptitle(title)
        for digit, ax in enumerate(rows.subplots(2, 5).flat):
            shown = np.flatnonzero(examples.labels == digit)[0]
            ax.imshow(examples.images[shown], cmap="gray_r", vmin=0, vmax=1)
            ax.set_axis_off()
    ax = right.subplots()
    per_class = [result.per_class for result in results]
    for name, marker in zip(PLANS, "os", strict=True):
        of_seeds = [result.accuracies[name] for result in results]
        means, spread = np.mean(of_seeds, axis=1), np.std(of_seeds, axis=1, ddof=1)
        ax.errorbar(per_class, means, spread, marker=marker, capsize=4, label=name)
    ax.set_xscale("log")
    ax.set_xticks(per_class, [str(number) for number in per_class])
    ax.minorticks_off()
    ax.set_xlabel("examples per class")
    ax.set_ylabel("accuracy, mean ± standard deviation")
    ax.legend(loc="lower right")
    ax.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> list[Result]:
    """Runs the comparison; returns a result for each number of examples per class."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--per-class", type=int, nargs="+", default=[1, 5, 20], metavar="N")
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds, at least 2")
    parser.add_argument("--source-epochs", type=int, default=8)
    parser.add_argument("--data-dir", type=Path, default=DATA_DIR, help="of TensorFlow Datasets")
    parser.add_argument("--output", type=Path, default=Path("outputs/source_to_target.png"))
    parser.add_argument(
        "--validate",
        action="store_true",
        help="with other seeds, on digits of the target task that are in no training or test set",
    )
    options = parser.parse_args(arguments)
    if options.seeds < 2:
        parser.error(
            f"--seeds must be at least 2, or there is no spread. Received: {options.seeds}"
        )
    keras.utils.set_random_seed(0)
    source = train_source(options.source_epochs, options.data_dir)
    pool, test = target_task(options.data_dir)
    backbone, report = carry_over(source)
    print(f"\n{report}\n")
    for name, plan in PLANS.items():
        plan_table = ktf.describe(
            transfer_model(backbone), plan, steps_per_epoch=EXAMPLES_PER_EPOCH // BATCH_SIZE
        )
        print(f"{name}\n{plan_table}\n")
    first = 100 if options.validate else 0
    seeds = range(first, first + options.seeds)
    results = []
    for per_class in options.per_class:
        print(f"{per_class} per class: {len(PLANS)} contenders, {len(seeds)} seeds ...", flush=True)
        results.append(compare(source, pool, None if options.validate else test, per_class, seeds))
    if options.validate:
        print(f"\n{table(results, 'the rest of the pool')}")
        return results
    print(f"\n{table(results, f'{len(test):,} test images')}")
    unchanged = accuracy_on(source, test)
    print(f"The source's network as it is, without a label of the target task: {unchanged:.3f}")
    draw(results, options.output, options.data_dir)
    print(f"Drawn: {options.output}")
    return results


if __name__ == "__main__":
    main()
