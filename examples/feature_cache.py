"""Fine-tunes the quickstart's network twice, with and without the feature cache.

Run it with `.venv/bin/python examples/feature_cache.py` (after `make quickstart`). It prints how
long each run took and how far apart the weights are in the end. Operations are made
deterministic and the images come in the same order in each epoch, so that nothing but the cache
can make a difference.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import keras_transfer as ktf
from examples.datasets import animal_silhouettes as silhouettes
from examples.pretrained.efficientnet_lite0 import efficientnet_lite0, preprocessing


def train(
    sets: Sequence[silhouettes.Examples],
    plan: ktf.UnfreezingPlan,
    cache_features: Any,
    *,
    seed: int = 0,
    verbose: int = 1,
) -> tuple[ktf.TransferModel, float, dict[str, list[float]]]:
    """Trains a head, then the last layer groups, and returns the model, seconds and history."""
    keras.utils.set_random_seed(seed)
    training, validation = sets[:2]
    size = training.images.shape[1]
    backbone = efficientnet_lite0(include_top=False, input_shape=(size, size, 3))
    model = ktf.TransferModel(
        ktf.layers.PretrainedBackbone(backbone, preprocess=preprocessing()),
        ktf.layers.ClassificationHead(num_classes=10, dropout=0.2, name="head"),
    )
    model.compile("adamw", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    if verbose and cache_features:
        examples = len(training) + len(validation)
        print(f"{ktf.describe(model, plan, examples=examples)}\n")
    began = time.perf_counter()
    history = model.fit(
        training.images,
        training.labels,
        validation_data=(validation.images, validation.labels),
        callbacks=[ktf.callbacks.GradualUnfreezing(plan)],
        shuffle=False,  # they were drawn at random, and a sum's rounding may depend on the order
        cache_features=cache_features,
        verbose=2 * verbose,
    )
    return model, time.perf_counter() - began, history.history


def largest_difference(first: keras.Model, second: keras.Model) -> float:
    """Returns the largest difference between the weights of two models."""
    pairs = zip(first.get_weights(), second.get_weights(), strict=True)
    return max(float(np.abs(a - b).max(initial=0)) for a, b in pairs)


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Trains with and without the cache, and prints times and the difference of the weights."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--labels", type=int, default=400, help="number of training images")
    parser.add_argument("--image-size", type=int, default=96, help="height and width, in pixels")
    parser.add_argument("--epochs", type=int, default=10, help="epochs of each stage")
    parser.add_argument("--verbose", type=int, default=1)
    options = parser.parse_args(arguments)
    tf.config.experimental.enable_op_determinism()
    sets = silhouettes.load(
        train_size=options.labels,
        validation_size=200,
        test_size=200,
        image_size=options.image_size,
        seed=0,
    )
    plan = ktf.UnfreezingPlan(
        [
            ktf.Stage("head", depth=1, epochs=options.epochs, peak_lr=1e-2),
            ktf.Stage("top", depth=2, epochs=options.epochs, peak_lr=1e-3),
        ]
    )
    cached, seconds_cached, _ = train(sets, plan, True, verbose=options.verbose)
    uncached, seconds, history = train(sets, plan, False, verbose=options.verbose)
    other, _, _ = train(sets, plan, True, seed=1, verbose=0)
    result = {
        "seconds_cached": seconds_cached,
        "seconds_uncached": seconds,
        "difference": largest_difference(cached, uncached),
        "difference_of_another_seed": largest_difference(cached, other),
        "val_accuracy": history["val_accuracy"][-1],
    }
    print(
        f"\nwithout the cache  {seconds:6.1f} s\n"
        f"with the cache     {seconds_cached:6.1f} s  ({seconds / seconds_cached:.1f} times as "
        "fast)\n"
        f"largest difference between the weights: {result['difference']:.2g}\n"
        f"(with another seed, for comparison:     {result['difference_of_another_seed']:.2g})"
    )
    return result


if __name__ == "__main__":
    main()
