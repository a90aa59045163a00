"""What the feature cache saves, each side in a process of its own.

Run `.venv/bin/python benchmarks/feature_cache.py` (about 40 minutes on 2 cores; `--repeats 1`
and `--cases frozen_1024` take less). It prints a Markdown table and saves a plot.

Each case times `fit` alone, tracing included, on MobileNetV2 at 96x96 with random weights. The
sides of a case take turns, and the table holds the median of each.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import os
import pathlib
import platform
import resource
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).parents[1]
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

# Case: (images, sides, ratio that is wanted of each side over the first).
CASES = {
    "frozen_4096": (4096, {"keras": None, "cached": 7.0, "cached_folded": 8.0}),
    "frozen_1024": (1024, {"keras": None, "cached": 5.0, "cached_folded": 6.0}),
    "staged": (2048, {"uncached": None, "cached": 2.5}),
    "one_epoch": (512, {"uncached": None, "cached": 0.95}),
    # Steady state: no tracing, no folding.
    "pass": (1024, {"predict": None, "pass": None, "pass_folded": 1.2}),
    # Epochs after the pass, by `compile(steps_per_execution=...)`.
    "steps_per_execution": (4096, {"1": None, "4": None, "16": None, "64": None}),
}
STEADY = ("pass", "steps_per_execution")
EPOCHS = 10


def images(count):
    """Returns random images and labels; what is in them does not matter to the time."""
    import numpy as np

    generator = np.random.default_rng(0)
    x = generator.random((count, 96, 96, 3), dtype="float32")
    return x, generator.integers(0, 10, count)


def backbone():
    """Returns MobileNetV2 without its classifier."""
    import keras

    return keras.applications.MobileNetV2(weights=None, include_top=False, input_shape=(96, 96, 3))


def plain_model():
    """Returns what a Keras user writes: a frozen backbone and a head, in one functional model."""
    import keras

    body = backbone()
    body.trainable = False
    inputs = keras.Input((96, 96, 3))
    features = keras.layers.GlobalAveragePooling2D()(body(inputs, training=False))
    return keras.Model(inputs, keras.layers.Dense(10, activation="softmax")(features))


def transfer_model():
    """Returns the same as a `TransferModel`, whose groups begin where features are narrow."""
    import keras_transfer as ktf

    groups = ["block_13_expand", "block_16_expand"]
    return ktf.TransferModel(backbone(), ktf.layers.ClassificationHead(10), groups=groups)


def plan_of(case):
    """Returns the plan of a case, or `None`."""
    import keras_transfer as ktf

    epochs = {"staged": 5, "one_epoch": 1}.get(case)
    if epochs is None:
        return None
    return ktf.UnfreezingPlan(
        [
            ktf.Stage("head", depth=1, epochs=epochs),
            ktf.Stage("top", depth=2, epochs=epochs),
            ktf.Stage("more", depth=3, epochs=epochs),
        ]
    )


def work_pass(side, count):
    """Times the frozen backbone alone over `count` images, once it is traced."""
    import keras
    import tensorflow as tf

    from keras_transfer.features._prefix import Prefix, deepest_point

    x, _ = images(count)
    model = transfer_model()
    if side == "predict":
        plain = keras.Model(model.backbone.model.inputs, model.backbone.model.outputs)
        plain.predict(x[:64], verbose=0)
        began = time.perf_counter()
        plain.predict(x, verbose=0)
    else:
        point = deepest_point(model, model.head.trainable_variables)
        prefix = Prefix(model, [point], fold_constants=side == "pass_folded")
        run = prefix.function(tf.TensorSpec((None, 96, 96, 3)))
        run(tf.convert_to_tensor(x[:32]))
        began = time.perf_counter()
        for start in range(0, count, 32):
            run(tf.convert_to_tensor(x[start : start + 32]))[point.key].numpy()
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": seconds, "later_epoch": seconds, "peak_mb": peak, "stored": None}


def work(case, side, count):
    """Runs one side of a case and returns what was measured."""
    if case == "pass":
        return work_pass(side, count)
    import keras

    import keras_transfer as ktf

    keras.utils.set_random_seed(0)
    x, y = images(count)
    plan = plan_of(case)
    ends = []
    timer = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: ends.append(time.perf_counter())
    )
    model = plain_model() if side == "keras" else transfer_model()
    steps = int(side) if case == "steps_per_execution" else 1
    model.compile(
        "adam",
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
        steps_per_execution=steps,
    )
    arguments = {"epochs": EPOCHS, "callbacks": [timer], "verbose": 0}
    cache = predicted = None
    if plan is not None:
        arguments["epochs"] = plan.total_epochs
        arguments["callbacks"].append(ktf.callbacks.GradualUnfreezing(plan, verbose=0))
        arguments["cache_features"] = "auto" if side == "cached" else False
    elif side != "keras":
        model.freeze()
        cache = ktf.features.FeatureCache(fold_constants=side == "cached_folded")
        arguments["cache_features"] = cache
        forecast = ktf.describe(model, ktf.recipes.linear_probe(EPOCHS), examples=count).cache
        predicted = sum(b.bytes_per_example * count for b in forecast.boundaries if b.stages)
    began = time.perf_counter()
    history = model.fit(x, y, **arguments)
    seconds = time.perf_counter() - began
    epochs = [b - a for a, b in itertools.pairwise(ends)]
    return {
        "seconds": seconds,
        "later_epoch": statistics.median(epochs),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "stored": None if cache is None else cache.nbytes,
        "predicted": predicted,
        "loss": history.history["loss"][-1],
    }


def measure(case, side, count, torch_python):
    """Runs one side of a case in a process of its own."""
    command = [sys.executable, __file__, "--worker", case, side, str(count)]
    if side in ("torch", "lightning"):
        script = str(pathlib.Path(__file__).with_name("feature_cache_torch.py"))
        command = [torch_python, script, side, str(count)]
    finished = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    return json.loads(finished.stdout.splitlines()[-1])


def rows_of(case, repeats, torch_python):
    """Measures a case and returns its rows of the table."""
    count, sides = CASES[case]
    if torch_python is not None and "keras" in sides:
        sides = {**sides, "torch": None, "lightning": None}
    found = {side: [] for side in sides}
    for repeat in range(repeats):
        for side in sides:
            found[side].append(measure(case, side, count, torch_python))
            print(f"{case} {side} {repeat + 1}/{repeats}: {found[side][-1]}", file=sys.stderr)
    base = next(iter(sides))
    rows = []
    for side, wanted in sides.items():
        median = {
            name: statistics.median(run[name] for run in found[side])
            for name in ("seconds", "later_epoch", "peak_mb")
        }
        # Sides that took turns had the same load: the median of ratios is steadier.
        timed = "later_epoch" if case in STEADY else "seconds"
        ratio = statistics.median(
            a[timed] / b[timed] for a, b in zip(found[base], found[side], strict=True)
        )
        epoch_ratio = statistics.median(
            a["later_epoch"] / b["later_epoch"]
            for a, b in zip(found[base], found[side], strict=True)
        )
        rows.append(
            {
                "case": case,
                "side": side,
                **median,
                "ratio": ratio,
                "epoch_ratio": epoch_ratio,
                "wanted": wanted,
                "stored": found[side][0]["stored"],
                "predicted": found[side][0].get("predicted"),
            }
        )
    return rows


def table(rows):
    """Returns the rows as a Markdown table."""
    columns = "case,side,seconds,times as fast,wanted,later epochs,peak memory,stored (predicted)"
    lines = [f"| {columns.replace(',', ' | ')} |", "|---|---" + "|---:" * 6 + "|"]
    for row in rows:
        wanted = "" if row["wanted"] is None else f"{row['wanted']:g}"
        stored = ""
        if row["stored"] is not None:
            stored = f"{row['stored'] / 1e6:.1f} MB ({row['predicted'] / 1e6:.1f} MB)"
        lines.append(
            f"| {row['case']} | {row['side']} | {row['seconds']:.1f} | {row['ratio']:.2f} | "
            f"{wanted} | {row['epoch_ratio']:.1f} times | {row['peak_mb']:.0f} MB | {stored} |"
        )
    return "\n".join(lines)


def draw(rows, path):
    """Draws the time of each side."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 0.45 * len(rows) + 1))
    names = [f"{row['case']}, {row['side']}" for row in rows]
    bars = axes.barh(names, [row["seconds"] for row in rows])
    axes.bar_label(bars, [f"{row['seconds']:.1f} s ({row['ratio']:.1f}x)" for row in rows])
    axes.invert_yaxis()
    axes.margins(x=0.3)
    axes.set_xlabel("seconds of `fit`, median")
    figure.tight_layout()
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=120)


def main():
    """Measures the cases that were asked for and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--plot", type=pathlib.Path, default=ROOT / "outputs/feature_cache.png")
    parser.add_argument(
        "--torch-python",
        default=sys.executable if importlib.util.find_spec("lightning") else None,
        help="a Python that has PyTorch and Lightning, to compare with them",
    )
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        case, side, count = arguments.worker
        print(json.dumps(work(case, side, int(count))))
        return
    rows = [
        row
        for case in arguments.cases
        for row in rows_of(case, arguments.repeats, arguments.torch_python)
    ]
    print(f"{platform.machine()}, {os.cpu_count()} cores, median of {arguments.repeats}\n")
    print(table(rows))
    draw(rows, arguments.plot)


if __name__ == "__main__":
    main()
