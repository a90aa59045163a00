"""What the package costs under `MirroredStrategy`, and what the replicas exchange.

Run it with `.venv/bin/python benchmarks/distribution.py`. Without several GPUs it makes two logical
CPU devices, which share the processor: ratios mean something there, speed-ups do not.

Two tables: the step time of a `TransferModel` with per-group rates over that of plain Keras with
the same layers under the same strategy, step by step in turns; and what one step of each stage sums
over the replicas, counted as the strategy is asked for it while the step is traced.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import keras_transfer as ktf
from benchmarks.discriminative_overhead import CLASSES, machine
from keras_transfer.lr_groups import group_multipliers
from keras_transfer.optimizers import find_discriminative

TARGET = 1.05


class CountingReductions(tf.distribute.ReductionToOneDevice):
    """Sums as its base class does, and keeps the shapes of what it is asked to sum."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []
        self.calls = 0

    def clear(self) -> None:
        """Forgets what was counted."""
        self.shapes, self.calls = [], 0

    @property
    def nbytes(self) -> int:
        """Bytes of all that was summed, at four for a number."""
        return 4 * sum(int(np.prod(shape)) for shape in self.shapes)

    def reduce(self, reduce_op: Any, per_replica_value: Any, *rest: Any, **options: Any) -> Any:
        self._count([per_replica_value])
        return super().reduce(reduce_op, per_replica_value, *rest, **options)

    def batch_reduce(self, reduce_op: Any, pairs: Any, *rest: Any, **options: Any) -> Any:
        pairs = list(pairs)
        self._count([value for value, _ in pairs])
        return super().batch_reduce(reduce_op, pairs, *rest, **options)

    def _count(self, values: list[Any]) -> None:
        self.calls += 1
        self.shapes += [tuple(value.values[0].shape) for value in values]


def devices() -> list[str]:
    """Returns the names of the GPUs, or of two logical CPU devices."""
    gpus = tf.config.list_physical_devices("GPU")
    if len(gpus) > 1:
        return [f"GPU:{index}" for index in range(len(gpus))]
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    return ["CPU:0", "CPU:1"]


def build(size: int, *, wrap: bool) -> keras.Model:
    """Returns MobileNetV2 and a head, BatchNorms still, as a `TransferModel` or plain."""
    keras.utils.set_random_seed(0)
    backbone = keras.applications.MobileNetV2(
        weights=None, include_top=False, input_shape=(size, size, 3), pooling="avg"
    )
    head = keras.layers.Dense(CLASSES, "softmax", name="head")
    if wrap:
        policy = ktf.layers.PretrainedBackbone(backbone, batch_norm="freeze")
        return ktf.TransferModel(policy, head)
    return keras.Sequential([backbone, head])


def train_only(model: keras.Model, top: int | None) -> None:
    """Lets the head and the top layer groups of the backbone train; `None` lets all train."""
    backbone = model.layers[0]
    if isinstance(model, ktf.TransferModel):
        if top is None:
            model.unfreeze()
        else:
            model.freeze_to(-1 - top)
        return
    groups = ktf.backbone_groups(backbone)
    frozen = [] if top is None else groups[: len(groups) - top]
    for layer in (layer for group in frozen for layer in group.all_layers):
        layer.trainable = False
    # Plain Keras moves their statistics while they train, which no recipe wants.
    for layer in backbone.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.trainable = False


def make_step(
    strategy: tf.distribute.Strategy, args: argparse.Namespace, top: int | None, *, wrap: bool
) -> Callable[[], float]:
    """Compiles a model and returns a function that runs a step and says how long it took."""
    with strategy.scope():
        model = build(args.size, wrap=wrap)
        if not wrap:
            train_only(model, top)
        model.compile(keras.optimizers.AdamW(1e-5), "sparse_categorical_crossentropy")
        if wrap:
            train_only(model, top)
            optimizer = find_discriminative(model.optimizer)
            assert optimizer is not None
            names = model.layer_groups.names
            optimizer.set_multipliers(group_multipliers(names, lr_decay=0.4))
    rng = np.random.default_rng(0)
    x = rng.normal(size=(args.batch_size, args.size, args.size, 3)).astype("float32")
    data = tf.data.Dataset.from_tensors((x, np.arange(len(x)) % CLASSES)).repeat().prefetch(2)
    batches: Iterator[Any] = iter(strategy.experimental_distribute_dataset(data))
    with strategy.scope():
        model.optimizer.build(model.trainable_variables)
        model.make_train_function(force=True)

    def step() -> float:
        start = time.perf_counter()
        float(model.train_function(batches)["loss"])  # waits for the step
        return time.perf_counter() - start

    return step


def overhead(strategy: tf.distribute.Strategy, args: argparse.Namespace) -> list[list[float]]:
    """Returns medians of the step time of both sides, plain first, for each repeat."""
    sides = [make_step(strategy, args, None, wrap=wrap) for wrap in (False, True)]
    for side in sides:
        for _ in range(3):
            side()
    repeats = []
    for _ in range(args.repeats):
        times: list[list[float]] = [[], []]
        for pair in range(args.pairs):
            for index in (0, 1) if pair % 2 else (1, 0):
                times[index].append(sides[index]())
        repeats.append([statistics.median(side) for side in times])
    return repeats


def exchanged(
    strategy: tf.distribute.Strategy, counting: CountingReductions, args: argparse.Namespace
) -> list[tuple[str, int, int, float, float, int, float]]:
    """Returns for each stage what it sums over the replicas, and how long a step takes.

    Name, reductions, tensors and MB of ours, milliseconds of a step, tensors and MB of plain Keras.
    """
    rows = []
    for name, top in (("head", 0), ("top three groups", 3), ("all", None)):
        found: list[tuple[int, int, float]] = []
        times: list[float] = []
        for wrap in (True, False):
            step = make_step(strategy, args, top, wrap=wrap)
            counting.clear()
            step()
            found.append((counting.calls, len(counting.shapes), counting.nbytes / 1e6))
            if wrap:
                times = [step() for _ in range(args.pairs)]
        rows.append((name, *found[0], 1000 * statistics.median(times), *found[1][1:]))
    return rows


def main() -> int:
    """Prints Markdown tables, and fails where the target is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5, help="ratios that are taken")
    parser.add_argument("--pairs", type=int, default=8, help="steps of each side in a repeat")
    parser.add_argument("--size", type=int, default=96, help="width and height of the images")
    parser.add_argument("--batch-size", type=int, default=16, help="images in a global batch")
    args = parser.parse_args()
    names = devices()
    strategy = tf.distribute.MirroredStrategy(names)
    replicas = strategy.num_replicas_in_sync
    repeats = overhead(strategy, args)
    ratios = [wrapped / plain for plain, wrapped in repeats]
    plain, wrapped = (1000 * statistics.median(side) for side in zip(*repeats, strict=True))
    ratio = statistics.median(ratios)
    print(
        f"| step on {replicas} replicas | plain Keras | `TransferModel` | ratio (range) | at most |"
    )
    print("|---|---:|---:|---:|---:|")
    print(
        f"| MobileNetV2, {args.size} px, global batch {args.batch_size} | {plain:.0f} ms | "
        f"{wrapped:.0f} ms | {ratio:.3f} ({min(ratios):.3f} to {max(ratios):.3f}) | {TARGET} |\n"
    )
    # How fast this one sums does not matter: on GPUs the strategy above uses NCCL.
    counting = CountingReductions()
    strategy = tf.distribute.MirroredStrategy(names, cross_device_ops=counting)
    print("| what trains | reductions | tensors summed | MB | step | plain Keras: tensors | MB |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for name, *numbers in exchanged(strategy, counting, args):
        print(
            f"| {name} | {{}} | {{}} | {{:.2f}} | {{:.0f}} ms | {{}} | {{:.2f}} |".format(*numbers)
        )
    print(f"\n{args.repeats} repeats of {args.pairs} steps; {machine()}")
    return int(ratio > TARGET)


if __name__ == "__main__":
    sys.exit(main())
