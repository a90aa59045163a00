import argparse

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_transfer as ktf
from examples._command_line import parse, planned
from examples._comparison import Contender, Result, compare, report, verdict


def result(name, accuracies, baseline=None):
    accuracies = np.array(accuracies)
    return Result(name, baseline, accuracies, np.ones_like(accuracies), 7, np.zeros(3, int))


@pytest.mark.parametrize(
    ("accuracies", "said"),
    [
        ([0.80, 0.82, 0.81], "'a' helps against 'b': +0.302 ± 0.007 (95 % interval over 3 seeds)."),
        ([0.20, 0.22, 0.21], "'a' hurts against 'b': -0.298 ± 0.007"),
        ([0.50, 0.53, 0.49], "Cannot tell 'a' from 'b': -0.002 ± 0.044"),
    ],
)
def test_the_verdict_follows_the_interval_and_can_be_either_way(accuracies, said):
    base = result("b", [0.50, 0.515, 0.51])
    # By hand: the gains' standard deviation is 0.002887, Student's t for 2 degrees is 4.303.
    if accuracies[0] != 0.50:
        gains = np.array(accuracies) - base.accuracies
        assert 4.3027 * gains.std(ddof=1) / 3**0.5 == pytest.approx(0.00717, abs=1e-5)
    assert verdict(result("a", accuracies, "b"), base).startswith(said)


def test_gains_are_taken_seed_by_seed():
    # Seeds differ by more than the contenders do; the paired gain has no spread at all.
    text = report([result("a", [0.3, 0.6, 0.9], "b"), result("b", [0.2, 0.5, 0.8])])
    assert "0.600 ± 0.300     +0.100 ± 0.000" in text
    assert "'a' helps against 'b': +0.100 ± 0.000" in text
    assert "over 3 seeds" in text


class Data:
    """Points of two classes, far apart."""

    def __init__(self):
        rng = np.random.default_rng(0)
        self.labels = np.arange(60) % 2
        self.points = (rng.normal(size=(60, 4)) + 6 * self.labels[:, None]).astype("float32")

    def __call__(self, start, stop):
        return tf.data.Dataset.from_tensor_slices(
            (self.points[start:stop], self.labels[start:stop])
        )


def model():
    backbone = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, activation="relu")])
    made = ktf.TransferModel(backbone, ktf.layers.ClassificationHead(num_classes=2))
    made.compile("adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    return made


def compared(contenders, data, processes=1):
    return compare(
        contenders,
        data(0, 40),
        data(40, 60),
        per_class=5,
        num_classes=2,
        batch_size=5,
        seeds=(0, 3),
        processes=processes,
    )


def test_contenders_train_on_the_same_examples_and_are_measured_on_the_same_ones(capsys):
    data, seen = Data(), []

    def spied(examples):
        seen.append(sorted(float(point[0]) for point, _ in examples.as_numpy_iterator()))
        return examples

    plans = {
        "good": ktf.recipes.full_fine_tuning(epochs=30, peak_lr=3e-2),
        "stands still": ktf.recipes.full_fine_tuning(epochs=1, peak_lr=1e-9),
    }
    contenders = [
        Contender(name, model, plan, "good" if name != "good" else None, spied)
        for name, plan in plans.items()
    ]
    good, still = compared(contenders, data)
    test, first, second, *again = seen
    assert len(test) == 20
    assert len(first) == len(second) == 10
    assert first != second
    assert again == [test, first, second]
    assert good.accuracies.tolist() == [1, 1]
    assert still.accuracies.mean() < 0.95
    assert good.predicted.tolist() == data.labels[40:].tolist()
    assert good.parameters == 8 * 5 + 2 * 9
    printed = capsys.readouterr().out
    assert "good, seed 3: 1.000 of 20 right after" in printed


def test_the_number_of_processes_is_at_least_one(capsys):
    assert parse(argparse.ArgumentParser(), ["--processes=3"], output="x.png").processes == 3
    assert parse(argparse.ArgumentParser(), [], output="x.png").processes in (1, 2)
    with pytest.raises(SystemExit):
        parse(argparse.ArgumentParser(), ["--processes=0"], output="x.png")
    assert "--processes must be at least 1. Received: 0" in capsys.readouterr().err


def test_quick_runs_are_a_quarter_as_long_and_one_seed_has_no_spread(capsys):
    options = parse(argparse.ArgumentParser(), ["--quick"], output="x.png")
    assert options.seeds == range(2)
    plan = planned(ktf.recipes.lp_ft(probe_epochs=20, fine_tune_epochs=3), options)
    assert [stage.epochs for stage in plan.stages] == [5, 1]
    validating = parse(argparse.ArgumentParser(), ["--validate", "--seeds=4"], output="x.png")
    assert validating.seeds == range(100, 104)
    assert planned(plan, validating) is plan
    with pytest.raises(SystemExit):
        parse(argparse.ArgumentParser(), ["--seeds=1"], output="x.png")
    assert "--seeds must be at least 2, or there is no spread. Received: 1" in (
        capsys.readouterr().err
    )


@pytest.mark.exhaustive
def test_runs_in_processes_of_their_own_come_to_the_same_numbers_on_a_small_model(capfd):
    data = Data()
    plan = ktf.recipes.full_fine_tuning(epochs=2, peak_lr=3e-2)
    contenders = [Contender("a", model, plan, "b"), Contender("b", model, plan)]
    here, there = (compared(contenders, data, processes=number) for number in (1, 2))
    for one, other in zip(here, there, strict=True):
        assert one.name == other.name
        np.testing.assert_array_equal(one.accuracies, other.accuracies)
        np.testing.assert_array_equal(one.predicted, other.predicted)
    assert capfd.readouterr().out.count("b, seed 3: ") == 2
