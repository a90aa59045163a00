"""Trains contenders with several seeds on the same examples, and says what came of it.

To compare strategies on your own task take `keras_transfer.recipes.compare`. The examples cannot
be written on it alone: there, what trains from scratch is the pretrained model with random
weights. Here it is given what suits it (the logarithm of the spectrogram, another BatchNorm
momentum), a control with random frozen features stands beside it, two models each have a
baseline, and the pictures show what the trained models predict.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import multiprocessing
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
    processes: int = 1,
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
        processes: Number of runs at a time. Short trainings keep one core busy, with Python that
            traces them; with more than 1, each run is in another process, on one core, whose
            sums may differ in their last digits.

    Returns:
        A result for each contender, in their order.
    """
    few = {seed: ktf.data.few_shot(pool, per_class, seed) for seed in seeds}
    runs: dict[str, list[Any]] = {contender.name: [] for contender in contenders}
    with contextlib.ExitStack() as stack:
        submit = _call_now
        if processes > 1:
            spawn = multiprocessing.get_context("spawn")
            executor = concurrent.futures.ProcessPoolExecutor(processes, spawn, _take_one_core)
            stack.callback(executor.shutdown, cancel_futures=True)  # where one fails
            submit = executor.submit
        # The baselines first: they train longest, and the last run should be a short one.
        for contender in sorted(contenders, key=lambda each: each.baseline is not None):
            measured = _arrays(contender.prepare(test))
            for seed in seeds:
                training = _arrays(contender.prepare(few[seed]))
                run = _Run(contender, seed, training, measured, batch_size)
                runs[contender.name].append(submit(_train_and_say, run))
        outcomes = {name: [run.result() for run in started] for name, started in runs.items()}
    return [
        Result(
            contender.name,
            contender.baseline,
            np.array([outcome.accuracy for outcome in outcomes[contender.name]]),
            np.array([outcome.seconds for outcome in outcomes[contender.name]]),
            outcomes[contender.name][-1].parameters,
            outcomes[contender.name][0].predicted,
        )
        for contender in contenders
    ]


def _take_one_core() -> None:
    # Processes that each use all cores get into each other's way.
    tf.config.threading.set_intra_op_parallelism_threads(1)


def _call_now(function: Callable[..., Any], *args: Any) -> concurrent.futures.Future[Any]:
    future: concurrent.futures.Future[Any] = concurrent.futures.Future()
    future.set_result(function(*args))
    return future


@dataclasses.dataclass(frozen=True)
class _Run:
    """One training; it can be handed to another process."""

    contender: Contender
    seed: int
    training: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]
    batch_size: int


@dataclasses.dataclass(frozen=True)
class _Outcome:
    accuracy: float
    seconds: float
    parameters: int
    predicted: np.ndarray


def _train_and_say(run: _Run) -> _Outcome:
    keras.utils.set_random_seed(run.seed)
    model = run.contender.model()
    training = tf.data.Dataset.from_tensor_slices(run.training)
    training = training.shuffle(len(training), seed=run.seed).batch(run.batch_size)
    start = time.perf_counter()
    history = model.fit(
        training,
        callbacks=[ktf.callbacks.GradualUnfreezing(run.contender.plan, verbose=0)],
        shuffle=False,  # The data set shuffles; Keras warns of a default that it ignores.
        verbose=0,
    ).history
    seconds = time.perf_counter() - start
    inputs, labels = run.test
    # For one batch, tracing a function takes longer than it gains.
    outputs = (
        model(inputs, training=False)
        if len(inputs) <= 250
        else model.predict(inputs, batch_size=100, verbose=0)
    )
    predicted = np.asarray(outputs).argmax(axis=-1)
    accuracy = float(np.mean(predicted == labels))
    print(
        f"{run.contender.name}, seed {run.seed}: {accuracy:.3f} of {len(labels):,} right "
        f"after {seconds:.0f} s",
        flush=True,
    )
    return _Outcome(accuracy, seconds, int(history["trainable_parameters"][-1]), predicted)


def _arrays(examples: tf.data.Dataset) -> tuple[np.ndarray, np.ndarray]:
    inputs, labels = zip(*examples.as_numpy_iterator(), strict=True)
    return np.stack(inputs), np.stack(labels)


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
    names = {"scratch": baseline, result.name: result}
    found = ktf.recipes.Comparison(
        metric="accuracy",
        mode="max",
        seeds=tuple(range(len(result.accuracies))),
        scores={name: tuple(one.accuracies) for name, one in names.items()},
        seconds={name: tuple(one.seconds) for name, one in names.items()},
        margin=0,
    ).difference(result.name)
    count = len(result.accuracies)
    difference = f"{found.mean:+.3f} ± {found.half_width:.3f} (95 % interval over {count} seeds)"
    if found.verdict not in ("helps", "hurts"):
        return f"Cannot tell {result.name!r} from {baseline.name!r}: {difference}."
    return f"{result.name!r} {found.verdict} against {baseline.name!r}: {difference}."


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
