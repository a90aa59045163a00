"""A training that stops and goes on later is the training that did not stop."""

import keras
import numpy as np
import pytest

import keras_transfer as ktf
from keras_transfer.callbacks import GradualUnfreezing
from tests.callbacks import toys

KINDS = {"stock": toys.stock, "transfer": toys.transfer}
PLAN = ktf.UnfreezingPlan(
    [
        ktf.Stage("probe", depth=1, epochs=1, peak_lr=5e-2),
        ktf.Stage("all", depth="all", epochs=4, lr_decay=0.5, schedule="one_cycle", peak_lr=1e-2),
    ]
)


def compiled(kind, optimizer="adam"):
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(0)
    model = KINDS[kind]()
    model.compile(optimizer, "sparse_categorical_crossentropy", run_eagerly=True)
    return model


def unfreezing(kind, plan=PLAN):
    return GradualUnfreezing(plan, groups="blocks" if kind == "stock" else None, verbose=0)


def fit(kind, model, plan=PLAN, callbacks=(), **options):
    x, y = toys.data()
    options = {"epochs": plan.total_epochs, "shuffle": False, "verbose": 0, **options}
    return model.fit(x, y, callbacks=[*callbacks, unfreezing(kind, plan)], **options).history


class StopAfter(keras.callbacks.Callback):
    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_end(self, epoch, logs=None):
        if epoch == self.epoch:
            self.model.stop_training = True


def same(one, other):
    return all(
        np.array_equal(a, b) for a, b in zip(one.get_weights(), other.get_weights(), strict=True)
    )


@pytest.mark.usually("transfer-adam")
@pytest.mark.parametrize("optimizer", ["adam", "nadam"])
@pytest.mark.parametrize("kind", KINDS)
def test_stopped_within_a_stage_and_continued(kind, optimizer):
    whole = compiled(kind, optimizer)
    fit(kind, whole)
    parts = compiled(kind, optimizer)
    fit(kind, parts, callbacks=[StopAfter(2)])
    assert not same(whole, parts)
    fit(kind, parts, initial_epoch=3)
    assert same(whole, parts)


def test_an_optimizer_that_trained_in_between_has_its_own_count():
    model = compiled("stock")
    fit("stock", model, callbacks=[StopAfter(2)])
    x, y = toys.data()
    model.fit(x, y, verbose=0)
    steps = int(model.optimizer.iterations.numpy())
    counts = []
    look = keras.callbacks.LambdaCallback(
        on_train_begin=lambda logs: None,
        on_epoch_begin=lambda epoch, logs: counts.append(model.optimizer.group_steps),
    )
    keras.Model.fit(
        model,
        x,
        y,
        epochs=4,
        initial_epoch=3,
        verbose=0,
        callbacks=[unfreezing("stock"), look],
    )
    assert set(counts[0].values()) == {steps}


# --- Beside `BackupAndRestore` ------------------------------------------------------------------


class KilledError(Exception):
    pass


class KillAt(keras.callbacks.Callback):
    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.epoch:
            raise KilledError


@pytest.mark.usually("3-first")
@pytest.mark.parametrize("backup_is", ["first", "last"])
@pytest.mark.parametrize("epoch", [1, 3])
def test_backup_and_restore_goes_on_exactly_on_a_stock_model(epoch, backup_is, tmp_path):
    whole = compiled("stock")
    history = fit("stock", whole)

    def part(*more):
        model = compiled("stock")
        backup = keras.callbacks.BackupAndRestore(tmp_path / "backup", delete_checkpoint=False)
        callbacks = [backup, unfreezing("stock"), *more]
        if backup_is == "last":
            callbacks[:2] = reversed(callbacks[:2])
        x, y = toys.data()
        options = {"epochs": PLAN.total_epochs, "shuffle": False, "verbose": 0}
        return model, model.fit(x, y, callbacks=callbacks, **options).history

    with pytest.raises(KilledError):
        part(KillAt(epoch))
    model, rest = part()  # Keras would warn of state that it skips, and warnings are errors
    assert same(whole, model)
    assert rest["loss"] == history["loss"][epoch:]


# --- Plateaus -----------------------------------------------------------------------------------

UPWARDS = {"monitor": "loss", "mode": "max", "patience": 5}


@pytest.mark.usually("epochs-transfer-False", "stop-transfer-True")
@pytest.mark.parametrize("use_ema", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ends", ["epochs", "stop"])
def test_best_weights_come_back_where_training_ends_before_the_stage(kind, ends, use_ema):
    plan = ktf.UnfreezingPlan([ktf.Stage("all", depth="all", epochs=9, **UPWARDS)])
    optimizer = keras.optimizers.Adam(1e-2, use_ema=use_ema, ema_momentum=0.5)
    model = compiled(kind, optimizer)
    seen = []

    class Look(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            seen.append((logs["loss"], model.get_weights()))

    options = {"epochs": 3} if ends == "epochs" else {}
    callbacks = [Look()] if ends == "epochs" else [Look(), StopAfter(2)]
    fit(kind, model, plan, callbacks, **options)
    losses = [loss for loss, _ in seen]
    assert int(np.argmax(losses)) == 0, "the first epoch has the highest loss"
    best = compiled(kind, keras.optimizers.Adam(1e-2, use_ema=use_ema, ema_momentum=0.5))
    fit(kind, best, plan, epochs=1)
    assert same(model, best)
    if not use_ema:
        for a, b in zip(seen[0][1], model.get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)


def test_initial_epoch_of_a_plan_with_plateaus_is_a_guess_that_is_named():
    plan = ktf.UnfreezingPlan(
        [
            ktf.Stage("probe", depth=1, epochs=2, **UPWARDS),
            ktf.Stage("all", depth="all", epochs=2),
        ]
    )
    with pytest.warns(UserWarning, match=r"epoch 2, .*'probe' begins.*ResumableTraining"):
        fit("stock", compiled("stock"), plan, initial_epoch=1)


# --- Files of a stock model ---------------------------------------------------------------------


def test_after_a_stage_of_single_variables_the_file_holds_the_optimizer_state(tmp_path):
    plan = ktf.UnfreezingPlan([ktf.Stage("bias", train="bias", epochs=1)])
    model = compiled("stock")
    fit("stock", model, plan)
    biases = [v.path.split("/")[-1] for v in model.trainable_variables]
    assert biases.count("kernel") == 1, "that of the head"
    model.save(tmp_path / "model.keras")
    # Keras would warn of state that it skips, and warnings are errors.
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert len(loaded.trainable_variables) > len(biases), "Keras keeps one flag for each layer"
    steps = int(model.optimizer.iterations.numpy())
    assert int(loaded.optimizer.iterations.numpy()) == steps > 0
    ours = {v.path.split("/", 1)[1]: v.numpy() for v in model.optimizer.variables}
    theirs = {v.path.split("/", 1)[1]: v.numpy() for v in loaded.optimizer.variables}
    moved = [name for name, value in ours.items() if "momentum" in name and np.any(value)]
    assert len(moved) == len(biases)
    assert len(ours) == len(theirs)
    for (_, a), (_, b) in zip(ours.items(), theirs.items(), strict=True):
        np.testing.assert_array_equal(a, b)
    # In this process only the biases go on.
    x, y = toys.data()
    kernel = np.array(model.layers[0].layers[0].kernel)
    model.fit(x, y, verbose=0)
    np.testing.assert_array_equal(kernel, model.layers[0].layers[0].kernel)
