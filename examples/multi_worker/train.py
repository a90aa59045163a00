"""One worker of a fine-tuning on several machines.

Run it through `examples/multi_worker/launch.py`, which starts two workers here, or in each machine
with its own `TF_CONFIG` (docs/how-to/many-machines.md). Without `TF_CONFIG` it trains alone, to the
same numbers. The pretrained network is a small CNN that this script trains on 28x28 animal
silhouettes of eight kinds; the target task are the other two kinds, with 40 labels.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import keras_transfer as ktf
from examples.datasets.animal_silhouettes import Examples, load

SOURCE_KINDS = 8  # of ten; the last two are the target task


def of_kinds(examples: Examples, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the images of some kinds, and their labels counted from 0."""
    chosen = (examples.labels >= first) & (examples.labels < last)
    return examples.images[chosen] / 255.0, examples.labels[chosen] - first


def small_cnn() -> keras.Model:
    """Three convolutions."""
    layers = [keras.Input((28, 28, 3))]
    for name, filters in (("stem", 16), ("middle", 32), ("top", 32)):
        layers.append(
            keras.layers.Conv2D(filters, 3, strides=2, padding="same", activation="relu", name=name)
        )
    return keras.Sequential(layers, name="small_cnn")


def train(options: argparse.Namespace, strategy: tf.distribute.Strategy) -> dict[str, object]:
    """Trains on the source task, carries the weights over, and fine-tunes on the target task."""
    training, _, test = load(train_size=600, validation_size=100, test_size=400, image_size=28)
    keras.utils.set_random_seed(0)
    with strategy.scope():
        backbone = small_cnn()
        source = ktf.TransferModel(backbone, ktf.layers.ClassificationHead(SOURCE_KINDS))
        source.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    x, y = of_kinds(training, 0, SOURCE_KINDS)
    source.fit(x, y, epochs=options.source_epochs, batch_size=32, verbose=0)

    with strategy.scope():
        model = ktf.TransferModel(backbone, ktf.layers.ClassificationHead(10 - SOURCE_KINDS))
        model.compile("adamw", "sparse_categorical_crossentropy", metrics=["accuracy"])
    plan = ktf.recipes.lp_ft(options.epochs, options.epochs, probe_lr=1e-2, fine_tune_lr=1e-3)
    x, y = of_kinds(training, SOURCE_KINDS, 10)
    is_chief = ktf.distribute.is_chief(strategy)
    callbacks = [
        ktf.callbacks.GradualUnfreezing(plan, verbose=int(is_chief)),
        # The chief writes, all read: a directory that all workers share.
        ktf.callbacks.ResumableTraining(options.directory, verbose=int(is_chief)),
    ]
    history = model.fit(x[:40], y[:40], batch_size=16, callbacks=callbacks, verbose=0).history
    loss, accuracy = model.evaluate(*of_kinds(test, SOURCE_KINDS, 10), batch_size=64, verbose=0)
    return {
        "replicas": strategy.num_replicas_in_sync,
        "losses": history["loss"],
        "test_loss": loss,
        "test_accuracy": accuracy,
        "is_chief": is_chief,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains; the chief prints the result as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directory", type=Path, default=Path("outputs/multi_worker"))
    parser.add_argument("--source-epochs", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=6, help="epochs of each stage")
    options = parser.parse_args(arguments)
    strategy = tf.distribute.get_strategy()
    if "TF_CONFIG" in os.environ:
        strategy = tf.distribute.MultiWorkerMirroredStrategy()
    result = train(options, strategy)
    if result.pop("is_chief"):
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
