"""Step time with per-group learning rates over step time with the bare optimizer.

Run it with `.venv/bin/python benchmarks/discriminative_overhead.py`. Both sides live in one
process and take turns, step by step, so that a busy moment of the machine hits both; the order
within a pair changes each time. A repeat is the ratio of the two medians of its steps; the
table shows the median of the repeats and their range. The ratio of processor times stands
beside it: other processes disturb it less.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf

import keras_transfer as ktf
from keras_transfer.lr_groups import group_multipliers
from keras_transfer.optimizers import find_discriminative

CLASSES = 10
FEATURES = 1280


def full_model(args: argparse.Namespace) -> tuple[keras.Model, tf.data.Dataset]:
    """MobileNetV2 with everything training, batches of images."""
    backbone = keras.applications.MobileNetV2(
        weights=None, include_top=False, input_shape=(args.size, args.size, 3), pooling="avg"
    )
    model = keras.Sequential([backbone, keras.layers.Dense(CLASSES, "softmax", name="head")])
    images = np.random.default_rng(0).normal(size=(args.batch_size, args.size, args.size, 3))
    return model, images


def head_model(args: argparse.Namespace) -> tuple[keras.Model, tf.data.Dataset]:
    """The head of the frozen stage on its cached features: a step of about a millisecond."""
    model = keras.Sequential(
        [
            keras.Input((FEATURES,)),
            keras.layers.Dropout(0.2),
            keras.layers.Dense(CLASSES, "softmax", name="head"),
        ]
    )
    return model, np.random.default_rng(0).normal(size=(32, FEATURES))


def groups_of(model: keras.Model) -> dict[str, list[keras.Variable]]:
    """The layer groups that `GradualUnfreezing` would find, with their variables."""
    head = list(model.layers[-1].variables)
    if not isinstance(model.layers[0], keras.Model):
        return {"head": head}
    groups = ktf.backbone_groups(model.layers[0])
    return {**groups.by_name(), "head": head}


def make_step(
    make: Callable[[argparse.Namespace], tuple[keras.Model, np.ndarray]],
    args: argparse.Namespace,
    *,
    wrap: bool,
) -> Callable[[], tuple[float, float]]:
    """Compiles a model and returns a function that runs a step: its wall and processor time."""
    keras.utils.set_random_seed(0)
    model, x = make(args)
    optimizer = keras.optimizers.AdamW(1e-5)
    if wrap:
        optimizer = ktf.optimizers.discriminative(optimizer)
    model.compile(optimizer, "sparse_categorical_crossentropy", jit_compile=False)
    inner = find_discriminative(optimizer)
    if inner is not None:
        groups = groups_of(model)
        inner.set_groups(groups)
        inner.set_multipliers(group_multipliers(list(groups), lr_decay=0.4))
    optimizer.build(model.trainable_variables)
    y = np.arange(len(x)) % CLASSES
    data = tf.data.Dataset.from_tensors((x.astype("float32"), y)).repeat().prefetch(2)
    batches: Iterator[object] = iter(data)
    model.make_train_function()

    def step() -> tuple[float, float]:
        start = time.perf_counter(), time.process_time()
        logs = model.train_function(batches)
        float(logs["loss"])  # waits for the step
        return time.perf_counter() - start[0], time.process_time() - start[1]

    return step


def measure(make: Callable[..., object], args: argparse.Namespace, pairs: int) -> dict[str, object]:
    """Returns both sides' step times in ms and the ratio of each repeat."""
    sides = [make_step(make, args, wrap=wrap) for wrap in (False, True)]
    for side in sides:
        for _ in range(5):
            side()
    medians = []
    for _ in range(args.repeats):
        times: list[list[tuple[float, float]]] = [[], []]
        for pair in range(pairs):
            for index in (0, 1) if pair % 2 else (1, 0):
                times[index].append(sides[index]())
        medians.append(np.median(times, axis=1))
    bare, wrapped = np.moveaxis(np.array(medians), 1, 0)  # each: repeats, wall and processor
    return {
        "bare": 1000 * float(np.median(bare[:, 0])),
        "wrapped": 1000 * float(np.median(wrapped[:, 0])),
        "ratios": (wrapped / bare)[:, 0].tolist(),
        "processor": (wrapped / bare)[:, 1].tolist(),
    }


def machine() -> str:
    """The processor, its cores, and the versions that matter."""
    name = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as file:
            lines = [line for line in file if line.startswith("model name")]
        name = lines[0].partition(":")[2].strip()
    except (OSError, IndexError):
        pass
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        name += ", " + tf.config.experimental.get_device_details(gpus[0]).get("device_name", "GPU")
    return (
        f"{name}, {os.cpu_count()} cores; Python {platform.python_version()}, Keras "
        f"{keras.__version__}, TensorFlow {tf.__version__}"
    )


def main() -> int:
    """Prints a Markdown table, and fails where a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=9, help="ratios that are taken")
    parser.add_argument("--size", type=int, default=96, help="width and height of the images")
    parser.add_argument("--batch-size", type=int, default=16, help="images in a step")
    args = parser.parse_args()
    cases = [
        (f"MobileNetV2, {args.size} px, batch {args.batch_size}", full_model, 10, 1.02),
        ("head on cached features, batch 32", head_model, 300, 1.10),
    ]
    rows, missed = [], False
    for name, make, pairs, target in cases:
        result = measure(make, args, pairs)
        ratios = result["ratios"]
        ratio = statistics.median(ratios)
        missed |= ratio > target
        rows.append(
            f"| {name} | {result['bare']:.2f} ms | {result['wrapped']:.2f} ms | {ratio:.3f} "
            f"({min(ratios):.3f} to {max(ratios):.3f}) | "
            f"{statistics.median(result['processor']):.3f} | {target:.2f} |"
        )
    print(
        "| step | bare AdamW | with group rates | ratio (range of repeats) | of processor times "
        "| target, at most |"
    )
    print("|---|---|---|---|---|---|")
    print("\n".join(rows))
    print(f"\n{args.repeats} repeats; {machine()}")
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
