"""What trials that share frozen features save, against plain KerasTuner on a frozen backbone.

Run `.venv/bin/python benchmarks/tuning.py` (about 40 minutes on 2 cores). Both sides run the same
trials, of the head's learning rate, on MobileNetV2 at 96x96, each in a process of its own, and it
prints both times, their ratio, and how far the scores are apart. `--memory` runs 30 small trials
in one process and in processes of their own instead, and prints how memory grew.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

import keras
import keras_tuner
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import keras_transfer as ktf

SIZE, CLASSES, BATCH = 96, 10, 32
RATES = (1e-4, 1e-2)
STATISTICS: list[np.ndarray] = []  # the backbone's weights, with BatchNorms that have seen data


def images(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns random images, and labels that depend on their mean colours."""
    generator = np.random.default_rng(seed)
    colours = generator.random((count, 1, 1, 3))
    x = (0.5 * colours + 0.5 * generator.random((count, SIZE, SIZE, 3))).astype("float32")
    return x, (colours[:, 0, 0] @ np.array([4.0, 2.0, 4.0])).astype(int) % CLASSES


def backbone() -> keras.Model:
    """Returns MobileNetV2 with random weights, the same each time, and features with spread.

    With the statistics that an untrained BatchNorm has, they would vanish, and all scores agree.
    """
    keras.utils.set_random_seed(0)
    model = keras.applications.MobileNetV2(
        weights=None, include_top=False, input_shape=(SIZE, SIZE, 3)
    )
    if not STATISTICS:
        norms = [la for la in model.layers if isinstance(la, keras.layers.BatchNormalization)]
        for norm in norms:
            norm.momentum = 0.0
        model(images(64, 2)[0], training=True)
        STATISTICS.extend(model.get_weights())
    model.set_weights(STATISTICS)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.99
    return model


def transfer_model() -> ktf.TransferModel:
    """Returns the package's model."""
    body = backbone()
    keras.utils.set_random_seed(1)
    model = ktf.TransferModel(body, ktf.layers.ClassificationHead(CLASSES))
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def plain_model(hp: keras_tuner.HyperParameters) -> keras.Model:
    """Returns what a KerasTuner user writes: a frozen backbone and a head."""
    body = backbone()
    body.trainable = False
    keras.utils.set_random_seed(1)
    inputs = keras.Input((SIZE, SIZE, 3))
    pooled = keras.layers.GlobalAveragePooling2D()(body(inputs, training=False))
    model = keras.Model(inputs, keras.layers.Dense(CLASSES, "softmax")(pooled))
    model.compile(
        keras.optimizers.Adam(hp.Float("head_lr", *RATES, sampling="log")),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    return model


def work(side: str, trials: int, count: int, epochs: int) -> dict[str, Any]:
    """Runs one side's search; returns its time and scores."""
    data: dict[str, Any] = {
        "validation_data": images(count // 4, 1), "epochs": epochs, "shuffle": False, "verbose": 0,
    }  # fmt: skip
    x, y = images(count, 0)
    options: dict[str, Any] = {"objective": "val_loss", "max_trials": trials, "seed": 3}
    with tempfile.TemporaryDirectory() as directory:
        tuner: Any
        if side == "plain":
            tuner = keras_tuner.RandomSearch(plain_model, directory=directory, **options)
        else:
            space = ktf.tuning.SearchSpace(
                head_lr=RATES, lr_decay=None, stage_lr_ratio=None, depth=1, num_stages=1
            )
            hypermodel = ktf.tuning.FineTuningHyperModel(transfer_model, space)
            oracle = keras_tuner.oracles.RandomSearchOracle(**options)
            tuner = ktf.tuning.Tuner(hypermodel, oracle, directory=directory)
        start = time.perf_counter()
        tuner.search(x, y, batch_size=BATCH, **data)
        seconds = time.perf_counter() - start
        scores = [float(trial.score) for trial in tuner.oracle.trials.values()]
    return {"seconds": seconds, "scores": scores}


def small_model() -> ktf.TransferModel:
    """Returns a model for `--memory`."""
    body = keras.applications.MobileNetV2(
        weights=None, include_top=False, input_shape=(32, 32, 3), alpha=0.35
    )
    model = ktf.TransferModel(body, ktf.layers.ClassificationHead(CLASSES))
    model.compile("adam", "sparse_categorical_crossentropy")
    return model


def resident_mib() -> float:
    """Returns the resident memory of this process."""
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


class Memory(keras.callbacks.Callback):
    """Writes down the resident memory of the process in MiB at the end of each trial."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def on_train_end(self, logs: Any = None) -> None:
        with open(self.path, "a") as file:
            file.write(f"{resident_mib()}\n")


def memory(trials: int) -> None:
    """Prints how memory grows from the third trial to the last, both ways."""
    x = np.random.default_rng(0).random((64, 32, 32, 3), dtype="float32")
    y = np.arange(64) % CLASSES
    for isolate in (True, False):  # first the one that leaves nothing in this process
        with tempfile.TemporaryDirectory() as directory:
            path = f"{directory}/memory.txt"
            ktf.tuning.tune(
                small_model, (x, y), validation_data=(x, y), max_trials=trials, oracle="random",
                search_space=ktf.tuning.SearchSpace(epochs=2), isolate_trials=isolate, verbose=0,
                directory=directory, callbacks=[Memory(path)], pruning=None,
            )  # fmt: skip
            found = [float(line) for line in pathlib.Path(path).read_text().split()]
            here = resident_mib()
        where = "in processes of their own" if isolate else "in one process"
        growth = (found[-1] - found[2]) / (len(found) - 3)
        print(
            f"{trials} trials {where}: {found[0]:.0f} MiB at the end of the first, {found[-1]:.0f} "
            f"of the last; {growth:+.1f} MiB a trial from the third on; the process that searched "
            f"holds {here:.0f} MiB",
            flush=True,
        )


def main() -> None:
    """Runs both sides in processes of their own, and prints what they took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory:
        memory(30 if options.trials == 10 else options.trials)
        return
    if options.side:
        print(json.dumps(work(options.side, options.trials, options.images, options.epochs)))
        return
    found = {}
    for side in ("shared", "plain"):
        command = [sys.executable, __file__, *sys.argv[1:], "--side", side]
        result = subprocess.run(command, check=True, capture_output=True, text=True)
        found[side] = json.loads(result.stdout.splitlines()[-1])
        print(f"{side}: {found[side]['seconds']:.1f} s", flush=True)
    ratio = found["plain"]["seconds"] / found["shared"]["seconds"]
    scores = [np.array(found[side]["scores"]) for side in ("shared", "plain")]
    apart = float(np.abs(scores[0] / scores[1] - 1).max())
    print(
        f"{ratio:.1f} times as fast (wanted: 6). Scores are {apart:.1e} apart at most (relative),"
    )
    print(f"from {scores[0].min():.4f} to {scores[0].max():.4f}.")


if __name__ == "__main__":
    main()
