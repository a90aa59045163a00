"""Tunes rates on real weights and images, and judges the tuned plan on images never seen.

EfficientNet-Lite0 on 200 labelled animal silhouettes. The search sees training and validation
images; the tuned plan, the default plan (LP-FT) and a head alone are then compared on test images
that nothing before has looked at.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import keras_transfer as ktf
from examples.datasets import animal_silhouettes as silhouettes
from examples.pretrained.efficientnet_lite0 import efficientnet_lite0, preprocessing

IMAGE_SIZE = 96
GROUPS = {
    "early": "stem_conv",
    "block6": "block6a_expand_conv",
    "block7": "block7a_expand_conv",
}  # name: first layer


def build_model() -> ktf.TransferModel:
    """Returns EfficientNet-Lite0 with its ImageNet weights and a new head."""
    model = efficientnet_lite0(include_top=False, input_shape=(IMAGE_SIZE, IMAGE_SIZE, 3))
    backbone = ktf.layers.PretrainedBackbone(model, groups=GROUPS, preprocess=preprocessing())
    head = ktf.layers.ClassificationHead(num_classes=10, dropout=0.2)
    transfer_model = ktf.TransferModel(backbone, head)
    transfer_model.compile(
        keras.optimizers.AdamW(1e-3, weight_decay=0.01),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    return transfer_model


def accuracy_of(model: keras.Model, test: silhouettes.Examples) -> float:
    """Returns the share of the test images that a model recognises."""
    probabilities = model.predict(test.images, verbose=0)
    return float(np.mean(probabilities.argmax(axis=1) == test.labels))


def train(
    plan: ktf.UnfreezingPlan,
    training: silhouettes.Examples,
    validation: silhouettes.Examples,
    cache: ktf.features.FeatureCache,
    seed: int,
) -> keras.Model:
    """Trains a new model under a plan, as a trial does: it keeps its best epoch."""
    keras.utils.set_random_seed(seed)
    model = build_model()
    best_epoch = keras.callbacks.EarlyStopping(
        "val_accuracy", mode="max", patience=plan.total_epochs, restore_best_weights=True
    )
    model.fit(
        training.images,
        training.labels,
        validation_data=(validation.images, validation.labels),
        verbose=0,
        callbacks=[ktf.callbacks.GradualUnfreezing(plan, verbose=0), best_epoch],
        cache_features=cache,
    )
    return model


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Runs the example; returns the test accuracy of each plan."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=6, help="epochs of a trial")
    parser.add_argument("--labels", type=int, default=200, help="number of training images")
    parser.add_argument("--test-size", type=int, default=1000, help="number of test images")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("outputs/tune_learning_rates.png"))
    options = parser.parse_args(arguments)
    training, validation, test = silhouettes.load(
        train_size=options.labels,
        validation_size=200,
        test_size=options.test_size,
        image_size=IMAGE_SIZE,
        seed=options.seed,
    )
    space = ktf.tuning.SearchSpace(
        epochs=options.epochs,
        head_lr=(1e-3, 1e-1),
        lr_decay=(0.1, 1.0),
        stage_lr_ratio=(0.01, 1.0),
        num_stages=2,
        depth=[2, 3],
        stage_share=0.5,
    )
    space.describe()
    cache = ktf.features.FeatureCache()
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as directory:
        result = ktf.tuning.tune(
            build_model,
            (training.images, training.labels),
            validation_data=(validation.images, validation.labels),
            search_space=space,
            objective="val_accuracy",
            max_trials=options.trials,
            cache_features=cache,
            directory=directory,
            seed=options.seed,
        )
        print(f"\nThe search took {time.perf_counter() - start:.0f} s.\n{result.table()}\n")
        axes = result.plot()
        found = {"tuned plan": accuracy_of(result.best_model, test)}
    # The other plans: from the same seed, for as many epochs, with the same choice of the best.
    half = options.epochs // 2
    plans = {
        "default plan (LP-FT)": ktf.recipes.lp_ft(half, options.epochs - half),
        "head only": ktf.recipes.linear_probe(options.epochs),
    }
    for name, plan in plans.items():
        print(f"Training under the {name} ...")
        model = train(plan, training, validation, cache, options.seed)
        found[name] = accuracy_of(model, test)
    print(f"{'':24}{'test accuracy':>18}")
    for name, accuracy in found.items():
        error = (accuracy * (1 - accuracy) / options.test_size) ** 0.5
        print(f"{name:24}{f'{accuracy:.3f} ± {error:.3f}':>18}")
    print(f"({options.test_size:,} test images, looked at once)")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    axes[0].figure.savefig(options.output, dpi=110)
    print(f"Drawn: {options.output}")
    return found


if __name__ == "__main__":
    main()
