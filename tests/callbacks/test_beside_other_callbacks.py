"""`GradualUnfreezing` beside Keras's callbacks, copied, and used twice."""

import copy
import csv
import math

import keras
import numpy as np
import pytest

import keras_transfer as ktf
from keras_transfer.callbacks import GradualUnfreezing
from tests.callbacks import toys

MAKERS = pytest.mark.parametrize("make", [toys.stock, toys.transfer])


# --- Copies, and two fits -----------------------------------------------------------------------


def test_one_object_serves_two_fits_of_a_transfer_model():
    model = toys.compiled(toys.transfer())
    callback = toys.unfreezing(model, toys.TWO_STAGES)
    x, y = toys.data()
    for _ in range(2):
        seen = toys.Snapshots()
        model.fit(x, y, epochs=2, verbose=0, callbacks=[callback, seen])
        assert seen.moves == toys.EXPECTED_OF_TWO_STAGES


@pytest.mark.usually("stock")
@MAKERS
def test_a_copy_made_after_a_fit_trains_another_model_and_leaves_the_first_alone(make):
    first, second = toys.compiled(make()), toys.compiled(make())
    callback = toys.unfreezing(first, toys.TWO_STAGES)
    x, y = toys.data()
    first.fit(x, y, epochs=2, verbose=0, callbacks=[callback])
    before = first.get_weights()
    copied = copy.deepcopy(callback)
    assert copied.model is None
    assert copied.stage_index is None
    seen = toys.Snapshots()
    second.fit(x, y, epochs=2, verbose=0, callbacks=[copied, seen])
    assert seen.moves == toys.EXPECTED_OF_TWO_STAGES
    for a, b in zip(before, first.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert callback.stage.name == "all"


class WithMore(GradualUnfreezing):
    """A user's own callback, with arguments of its own."""

    def __init__(self, tag, **kwargs):
        super().__init__(toys.PLAN, groups="blocks", verbose=0, **kwargs)
        self.tag = tag


def test_a_subclass_with_arguments_of_its_own_can_be_copied():
    copied = copy.deepcopy(WithMore(["a"], batch_norm="train"))
    assert (copied.tag, copied.batch_norm, copied.plan) == (["a"], "train", toys.PLAN)


# --- Beside Keras's own -------------------------------------------------------------------------


@pytest.mark.usually("stock-True")
@pytest.mark.parametrize(
    ("make", "logger_first"),
    [(toys.stock, False), (toys.transfer, False), (toys.stock, True)],
)
def test_csv_logger_writes_a_row_for_each_epoch(make, logger_first, tmp_path):
    model = toys.compiled(make())
    logger = keras.callbacks.CSVLogger(tmp_path / "log.csv")
    callbacks = [toys.unfreezing(model), logger]
    x, y = toys.data()
    model.fit(x, y, epochs=3, verbose=0, callbacks=callbacks[:: -1 if logger_first else 1])
    rows = list(csv.DictReader((tmp_path / "log.csv").read_text().splitlines()))
    assert [row["epoch"] for row in rows] == ["0", "1", "2"]
    if logger_first:
        return
    assert [row["stage"] for row in rows] == ["0", "1", "2"]
    rates = [[float(row[f"learning_rate/{n}"]) for n in ("stem", "top", "new")] for row in rows]
    assert [[math.isnan(rate) for rate in row] for row in rates] == [
        [True, True, False],
        [True, False, False],
        [False, False, False],
    ]


def test_tensorboard_and_checkpoints_run_beside_it(tmp_path):
    pytest.importorskip("tensorboard")
    model = toys.compiled(toys.stock())
    callbacks = [
        keras.callbacks.TensorBoard(tmp_path / "logs", histogram_freq=1),
        keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.keras"),
        keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.weights.h5", save_weights_only=True),
    ]
    seen = Weights()
    assert toys.fit(model, callbacks=[*callbacks, seen]) == toys.EXPECTED
    assert list((tmp_path / "logs" / "train").glob("events*"))
    for epoch in (1, 2, 3):
        loaded = keras.models.load_model(tmp_path / f"{epoch}.keras")
        for a, b in zip(loaded.get_weights(), seen.ends[epoch - 1], strict=True):
            np.testing.assert_array_equal(a, b)
        fresh = toys.stock()
        fresh.load_weights(tmp_path / f"{epoch}.weights.h5")
        for a, b in zip(fresh.get_weights(), seen.ends[epoch - 1], strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.usually("transfer")
@MAKERS
def test_a_checkpoint_of_the_middle_goes_on_as_the_run_did(make, tmp_path):
    x, y = toys.data()
    model = toys.compiled(make())
    callbacks = [
        toys.unfreezing(model),
        keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.keras"),
    ]
    options = {"epochs": 3, "verbose": 0, "shuffle": False}
    model.fit(x, y, callbacks=callbacks, **options)
    loaded = keras.models.load_model(tmp_path / "2.keras")
    loaded.fit(x, y, callbacks=[toys.unfreezing(loaded)], initial_epoch=2, **options)
    for a, b in zip(loaded.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


class Weights(keras.callbacks.Callback):
    """Keeps the weights of each epoch's end."""

    def on_train_begin(self, logs=None):
        self.ends = []

    def on_epoch_end(self, epoch, logs=None):
        self.ends.append(self.model.get_weights())


def test_a_rate_that_another_callback_sets_stands_until_the_next_peak_lr():
    plan = ktf.UnfreezingPlan(
        [
            ktf.Stage("probe", depth=1, epochs=2, peak_lr=0.1),
            ktf.Stage("top", depth=2, epochs=2),
            ktf.Stage("all", depth="all", epochs=2, peak_lr=0.01),
        ]
    )
    model = toys.compiled(toys.stock())
    halving = keras.callbacks.LearningRateScheduler(
        lambda epoch, rate: rate / 2 if epoch == 1 else rate
    )
    x, y = toys.data()
    callbacks = [toys.unfreezing(model, plan), halving]
    history = model.fit(x, y, epochs=6, verbose=0, callbacks=callbacks).history
    rates = history["learning_rate/new"]
    np.testing.assert_allclose(rates, [0.1, 0.05, 0.05, 0.05, 0.01, 0.01], rtol=1e-6)
