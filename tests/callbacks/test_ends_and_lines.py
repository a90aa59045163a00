"""How a plan ends, and what is printed on the way."""

import keras
import numpy as np
import pytest

import keras_transfer as ktf
from keras_transfer.callbacks import GradualUnfreezing
from tests.callbacks import toys

NEVER_BETTER = {"monitor": "loss", "patience": 1, "min_delta": 1e9}


def plan_of(*stages):
    return ktf.UnfreezingPlan(stages)


def loud(model, plan, **options):
    groups = None if isinstance(model, ktf.TransferModel) else "blocks"
    return GradualUnfreezing(plan, groups=groups, **options)


@pytest.mark.usually("stock")
@pytest.mark.parametrize("make", [toys.stock, toys.transfer])
def test_a_line_is_printed_at_each_stage_and_a_note_on_a_stock_model(make, capsys):
    model = toys.compiled(make())
    x, y = toys.data()
    callback = loud(model, toys.PLAN)
    model.fit(x, y, epochs=3, verbose=0, callbacks=[callback])
    lines = capsys.readouterr().out.splitlines()
    if make is toys.stock:
        assert lines.pop(0) == "The head starts after the nested model 'body'. BatchNorm: freeze."
    assert [line for line in lines if line.startswith("Epoch")] == [
        "Epoch 1: stage 'probe' trains new (27 of 227 parameters).",
        "Epoch 2: stage 'top' trains top, new (99 of 227 parameters).",
        "Epoch 3: stage 'all' trains stem, mid, top, new (227 of 227 parameters).",
    ]


def test_a_fit_that_is_shorter_than_the_plan_names_the_stages_that_did_not_run(capsys):
    model = toys.compiled(toys.stock())
    x, y = toys.data()
    model.fit(x, y, epochs=1, verbose=0, callbacks=[loud(model, toys.PLAN)])
    assert capsys.readouterr().out.splitlines()[-1] == "Training ended before: 'top', 'all'."


def test_a_plan_with_plateaus_ends_when_its_last_stage_does(capsys):
    plan = plan_of(
        ktf.Stage("probe", depth=1, epochs=5, **NEVER_BETTER),
        ktf.Stage("all", depth="all", epochs=2),
    )
    model = toys.compiled(toys.stock())
    x, y = toys.data()
    # Longer than the plan can take: allowed, since its length is not known.
    history = model.fit(x, y, epochs=20, verbose=0, callbacks=[loud(model, plan)]).history
    assert history["stage"] == [0, 0, 1, 1]
    assert "stage 'probe' ends: loss has not improved on" in capsys.readouterr().out


@pytest.mark.usually("stock")
@pytest.mark.parametrize("make", [toys.stock, toys.transfer])
def test_a_user_who_stops_training_stops_the_plan(make, capsys):
    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = epoch == 1

    model = toys.compiled(make(), "sgd")
    x, y = toys.data()
    history = model.fit(x, y, epochs=3, verbose=0, callbacks=[loud(model, toys.PLAN), Stop()])
    assert history.history["stage"] == [0, 1]
    assert "Training ended before: 'all'." in capsys.readouterr().out
    wanted = "SGD" if make is toys.stock else "DiscriminativeOptimizer"
    assert type(model.optimizer).__name__ == wanted


def test_a_fit_that_was_interrupted_can_be_run_again():
    class Interrupt(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            raise KeyboardInterrupt

    model = toys.compiled(toys.stock(), "adam")
    callback = toys.unfreezing(model, toys.TWO_STAGES)
    x, y = toys.data()
    with pytest.raises(KeyboardInterrupt):
        model.fit(x, y, epochs=2, verbose=0, callbacks=[callback, Interrupt()])
    seen = toys.Snapshots()
    model.fit(x, y, epochs=2, verbose=0, callbacks=[callback, seen])
    assert seen.moves == toys.EXPECTED_OF_TWO_STAGES
    assert type(model.optimizer) is keras.optimizers.Adam


def test_the_plan_gives_transfer_model_its_epochs():
    model = toys.compiled(toys.transfer())
    x, y = toys.data()
    history = model.fit(x, y, verbose=0, callbacks=[toys.unfreezing(model)])
    assert history.epoch == [0, 1, 2]


def test_an_early_stopping_beside_a_plan_of_stages_is_warned_of():
    model = toys.compiled(toys.transfer())
    x, y = toys.data()
    callbacks = [toys.unfreezing(model), keras.callbacks.EarlyStopping("loss")]
    with pytest.warns(UserWarning, match=r"write Stage\(patience=\.\.\.\) and leave"):
        model.fit(x, y, epochs=1, verbose=0, callbacks=callbacks)


def test_a_backup_beside_stages_that_end_on_a_plateau_is_an_error(tmp_path):
    model = toys.compiled(toys.transfer())
    x, y = toys.data()
    plan = plan_of(ktf.Stage("probe", depth=1, epochs=5, **NEVER_BETTER))
    backup = keras.callbacks.BackupAndRestore(tmp_path)
    with pytest.raises(ValueError, match="does not keep when a stage began"):
        model.fit(x, y, verbose=0, callbacks=[toys.unfreezing(model, plan), backup])


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ({"monitor": "val_loss"}, r"'val_loss', which `fit` did not report .* Pass `validation_"),
        ({"monitor": "accurcy"}, r"Did you mean 'accuracy'\?"),
        ({"monitor": "own"}, r"does not know whether it is better when higher or lower"),
    ],
)
def test_a_metric_that_no_stage_can_wait_for_is_an_error_after_the_first_epoch(stage, message):
    own = keras.metrics.MeanMetricWrapper(lambda y, p: keras.ops.mean(p), name="own")
    model = toys.compiled(toys.transfer(), metrics=["accuracy", own])
    plan = plan_of(
        ktf.Stage("probe", depth=1, epochs=1),
        ktf.Stage("all", depth="all", epochs=3, patience=1, **stage),
    )
    x, y = toys.data()
    with pytest.raises(ValueError, match=message):
        model.fit(x, y, verbose=0, callbacks=[toys.unfreezing(model, plan)])


def test_a_schedule_needs_a_known_number_of_steps():
    def batches():
        while True:
            yield toys.data()

    model = toys.compiled(toys.stock())
    plan = plan_of(ktf.Stage("all", depth="all", epochs=1, schedule="one_cycle"))
    with pytest.raises(ValueError, match=r"length in steps cannot be known: .* `steps_per"):
        model.fit(batches(), shuffle=False, verbose=0, callbacks=[toys.unfreezing(model, plan)])


@pytest.mark.parametrize("stage", [{"peak_lr": 0.1}, {"schedule": "one_cycle"}])
def test_a_rate_in_the_plan_beside_a_schedule_in_the_optimizer_is_an_error(stage):
    schedule = keras.optimizers.schedules.CosineDecay(0.1, 10)
    model = toys.compiled(toys.stock(), keras.optimizers.Adam(schedule))
    plan = plan_of(ktf.Stage("all", depth="all", epochs=1, **stage))
    x, y = toys.data()
    with pytest.raises(ValueError, match="learning rate is a CosineDecay, which would be over"):
        model.fit(x, y, verbose=0, callbacks=[toys.unfreezing(model, plan)])
    assert np.isclose(float(model.optimizer.learning_rate.numpy()), 0.1)
