"""Trains contenders with several seeds on the same examples, and says what came of it.

To compare strategies on your own task take `keras_transfer.recipes.compare`. The examples cannot
be written on it alone: there, what trains from scratch is the pretrained model with random
weights. Here it is given what suits it (the logarithm of the spectrogram, another BatchNorm
momentum), a control with random frozen features stands beside it, two models each have a
baseline, and the pictures show what the trained models predict.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import keras_transfer as ktf


def _as_it_is(examples: tf.data.Dataset) -> tf.data.Dataset:
    return examples


@dataclasses.dataclass(frozen=True)
class Contender:
    """One way to train.

    Attributes:
        name: The way, in a few words.
        model: Makes a compiled model; what starts at random starts anew in each call.
        plan: The stages that it trains under.
        baseline: Name of the contender that it has to beat; `None` for a baseline itself.
        prepare: Turns single examples into what the model takes.
    """

    name: str
    model: Callable[[], ktf.TransferModel]
    plan: ktf.UnfreezingPlan
    baseline: str | None = None
    prepare: Callable[[tf.data.Dataset], tf.data.Dataset] = _as_it_is


@dataclasses.dataclass(frozen=True)
class Result:
    """What came of one contender.

    Attributes:
        name: The contender's name.
        baseline: Name of the contender that it has to beat; `None` for a baseline itself.
        accuracies: Share of the test examples that were recognised, with each seed.
        seconds: Time that training took, with each seed.
        parameters: Number of parameters that the last stage trained.
        predicted: Class of each test example, as the first seed's model has it.
    """

    name: str
    baseline: str | None
    accuracies: np.ndarray
    seconds: np.ndarray
    parameters: int
    predicted: np.ndarray


def compare(
    contenders: Sequence[Contender],
    pool: tf.data.Dataset,
    test: tf.data.Dataset,
    *,
    per_class: int,
    num_classes: int,
    batch_size: int,
    seeds: Sequence[int],
) -> list[Result]:
    """Trains each contender with each seed, and prints a line for each run.

    Args:
        contenders: The ways to train.
        pool: Single examples, of which each seed draws its training set. All contenders get
            the same.
        test: Single examples to measure on, in a fixed order.
        per_class: Number of training examples of each class.
        num_classes: Number of classes.
        batch_size: Training examples per step.
        seeds: A seed draws the training examples, the weights that start at random and the
            batches.

    Returns:
        A result for each contender, in their order.
    """
    labels = np.concatenate([label for _, label in test.batch(100).as_numpy_iterator()])
    few = {seed: ktf.data.few_shot(pool, per_class, seed) for seed in seeds}
    results = []
    for contender in contenders:
        accuracies, seconds, parameters, predicted = [], [], 0, []
        measured = contender.prepare(test).batch(100)
        for seed in seeds:
            print(f"{contender.name}, seed {seed} ...", end=" ", flush=True)
            keras.utils.set_random_seed(seed)
            model = contender.model()
            training = contender.prepare(few[seed])
            training = training.shuffle(per_class * num_classes, seed=seed).batch(batch_size)
            start = time.perf_counter()
            history = model.fit(
                training,
                callbacks=[ktf.callbacks.GradualUnfreezing(contender.plan, verbose=0)],
                shuffle=False,  # The data set shuffles; Keras warns of a default that it ignores.
                verbose=0,
            ).history
            seconds.append(time.perf_counter() - start)
            # Called, not `predict`: each model would trace a function for a few batches.
            outputs = [np.asarray(model(batch, training=False)) for batch, _ in measured]
            predicted.append(np.concatenate(outputs).argmax(axis=-1))
            accuracies.append(float(np.mean(predicted[-1] == labels)))
            parameters = int(history["trainable_parameters"][-1])
            print(f"{accuracies[-1]:.3f} of {len(labels):,} right after {seconds[-1]:.0f} s")
        results.append(
            Result(
                contender.name,
                contender.baseline,
                np.array(accuracies),
                np.array(seconds),
                parameters,
                predicted[0],
            )
        )
    return results


def report(results: Sequence[Result]) -> str:
    """Lays the results out, each with its gain over its baseline, and says if it is better."""
    by_name = {result.name: result for result in results}
    width = max(map(len, by_name))
    heading = f"{'':{width}}{'test accuracy':>18}{'gain':>19}{'time of a run':>16}"
    lines, verdicts = [f"{heading}{'parameters trained':>21}"], []
    for result in results:
        gain = ""
        if result.baseline is not None:
            baseline = by_name[result.baseline]
            gain = _spread(result.accuracies - baseline.accuracies, sign="+")
            verdicts.append(verdict(result, baseline))
        lines.append(
            f"{result.name:{width}}{_spread(result.accuracies):>18}{gain:>19}"
            f"{f'{result.seconds.mean():.0f} s':>16}{result.parameters:>21,}"
        )
    seeds = len(results[0].accuracies)
    lines.append(f"(mean ± standard deviation over {seeds} seeds; gains are taken seed by seed)")
    return "\n".join([*lines, "", *verdicts])


def verdict(result: Result, baseline: Result) -> str:
    """Says whether one contender is better than another, worse, or if that cannot be told.

    By the 95 % interval of the mean difference, paired by seed (Student's t).
    """
    from scipy import stats

    gains = result.accuracies - baseline.accuracies
    mean = float(gains.mean())
    half = float(stats.t.ppf(0.975, len(gains) - 1) * gains.std(ddof=1) / np.sqrt(len(gains)))
    difference = f"{mean:+.3f} ± {half:.3f} (95 % interval over {len(gains)} seeds)"
    if abs(mean) <= half:
        return f"Cannot tell {result.name!r} from {baseline.name!r}: {difference}."
    verb = "helps" if mean > 0 else "hurts"
    return f"{result.name!r} {verb} against {baseline.name!r}: {difference}."


def _spread(values: np.ndarray, sign: str = "") -> str:
    return f"{values.mean():{sign}.3f} ± {values.std(ddof=1):.3f}"


def draw_accuracies(results: Sequence[Result], ax: Any) -> None:
    """Draws the mean accuracy of each contender as a bar, and each seed as a dot."""
    for row, result in enumerate(reversed(results)):
        ax.barh(row, result.accuracies.mean(), height=0.6, alpha=0.45)
        ax.plot(result.accuracies, np.full(len(result.accuracies), row), "k.", markersize=6)
        ax.annotate(
            f"{result.accuracies.mean():.3f}",
            (result.accuracies.max(), row),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
        )
    ax.set_yticks(range(len(results)), [result.name for result in reversed(results)])
    ax.set_xlim(0, 1.12)
    ax.set_xlabel(f"test accuracy: mean, and each of {len(results[0].accuracies)} seeds")
    ax.grid(axis="x", alpha=0.3)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
