import keras
import numpy as np
import pytest

import keras_transfer as ktf
from tests.callbacks import toys
from tests.callbacks.toys import (
    EXPECTED,
    Snapshots,
    backbone,
    compiled,
    data,
    stock,
    transfer,
    unfreezing,
)


@pytest.mark.usually("True-transfer", "False-stock")
@pytest.mark.parametrize("make", [stock, transfer])
@pytest.mark.parametrize("froze_first", [True, False])
def test_only_the_groups_of_the_stage_move(make, froze_first):
    x, y = data()
    model = make()
    if froze_first:
        model.layers[0].trainable = False
    compiled(model)
    seen = Snapshots()
    history = model.fit(x, y, epochs=3, verbose=0, callbacks=[unfreezing(model), seen])
    assert seen.moves == EXPECTED
    assert history.history["stage"] == [0, 1, 2]


def test_the_naive_toggle_moves_nothing_new():
    class Toggle(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                self.model.layers[0].trainable = True

    x, y = data()
    model = stock()
    model.layers[0].trainable = False
    compiled(model)
    seen = Snapshots()
    model.fit(x, y, epochs=2, verbose=0, callbacks=[Toggle(), seen])
    assert seen.moves[1] == [False] * 6 + [True] * 2


def test_a_second_fit_with_the_same_object_starts_over():
    x, y = data()
    model = compiled(stock())
    callback = unfreezing(model)
    model.fit(x, y, epochs=3, verbose=0, callbacks=[callback])
    seen = Snapshots()
    model.fit(x, y, epochs=3, verbose=0, callbacks=[callback, seen])
    assert seen.moves == EXPECTED


def test_initial_epoch_lands_in_the_right_stage():
    x, y = data()
    model = compiled(stock())
    seen = Snapshots()
    model.fit(x, y, epochs=2, initial_epoch=1, verbose=0, callbacks=[unfreezing(model), seen])
    assert seen.moves == EXPECTED[1:2]


def test_a_stock_model_gets_its_plain_optimizer_back_with_its_slots():
    x, y = data()
    model = compiled(stock(), keras.optimizers.Adam())
    model.fit(x, y, epochs=3, verbose=0, callbacks=[unfreezing(model)])
    assert type(model.optimizer) is keras.optimizers.Adam
    assert int(model.optimizer.iterations.numpy()) == 3
    assert all(np.abs(slot.numpy()).max() > 0 for slot in model.optimizer.variables[2:])


def test_biases_alone_train_in_a_bias_stage():
    x, y = data()
    model = compiled(transfer())
    plan = ktf.UnfreezingPlan([ktf.Stage("bias", train="bias", epochs=1)])
    seen = Snapshots()
    model.fit(x, y, verbose=0, callbacks=[unfreezing(model, plan), seen])
    assert seen.moves == [[False, True] * 3 + [True] * 2]


def test_peak_lr_and_decay_set_the_rates_of_the_groups():
    x, y = data()
    model = compiled(transfer())
    plan = ktf.UnfreezingPlan([ktf.Stage("all", depth="all", epochs=1, peak_lr=0.01, lr_decay=0.5)])
    history = model.fit(x, y, verbose=0, callbacks=[unfreezing(model, plan)]).history
    rates = [history[f"learning_rate/{n}"][0] for n in ("stem", "mid", "top", "new")]
    np.testing.assert_allclose(rates, [0.00125, 0.0025, 0.005, 0.01], rtol=1e-6)


def test_a_stage_with_patience_ends_early_and_the_next_begins():
    x, y = data()
    model = compiled(transfer())
    plan = ktf.UnfreezingPlan(
        [
            ktf.Stage("probe", depth=1, epochs=5, monitor="loss", patience=1, min_delta=1e9),
            ktf.Stage("all", depth="all", epochs=1),
        ]
    )
    history = model.fit(x, y, verbose=0, callbacks=[unfreezing(model, plan)]).history
    assert history["stage"] == [0, 0, 1]


def test_a_transfer_model_is_the_same_after_saving_and_loading(tmp_path):
    x, y = data()
    model = compiled(transfer())
    model.fit(x, y, verbose=0, epochs=2, callbacks=[unfreezing(model)])
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), model.predict(x, verbose=0))
    flags = [v.trainable for v in model.layer_groups.variables]
    assert [v.trainable for v in loaded.layer_groups.variables] == flags
    losses = [m.fit(x, y, verbose=0, shuffle=False).history["loss"] for m in (model, loaded)]
    assert losses[0] == losses[1]
    for a, b in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


class Scores(keras.callbacks.Callback):
    """Reports a made-up metric, and keeps the weights of each epoch's end and begin."""

    def __init__(self, scores):
        super().__init__()
        self.scores, self.ends, self.begins = scores, [], []

    def on_epoch_begin(self, epoch, logs=None):
        self.begins.append(self.model.get_weights())

    def on_epoch_end(self, epoch, logs=None):
        logs["score"] = self.scores[epoch]
        self.ends.append(self.model.get_weights())


@pytest.mark.usually("True")
@pytest.mark.parametrize("restore", [True, False])
def test_a_stage_with_patience_hands_on_its_best_weights(restore):
    x, y = data()
    model = compiled(transfer())
    plan = ktf.UnfreezingPlan(
        [
            ktf.Stage(
                "probe",
                depth=1,
                epochs=9,
                monitor="score",
                mode="max",
                patience=2,
                restore_best_weights=restore,
            ),
            ktf.Stage("all", depth="all", epochs=1),
        ]
    )
    seen = Scores([1.0, 3.0, 2.0, 2.5, 0.0])
    history = model.fit(x, y, verbose=0, callbacks=[seen, unfreezing(model, plan)]).history
    assert history["stage"] == [0, 0, 0, 0, 1]
    best, last = seen.ends[1], seen.ends[3]
    assert any(not np.array_equal(a, b) for a, b in zip(best, last, strict=True))
    for a, b in zip(best if restore else last, seen.begins[4], strict=True):
        np.testing.assert_array_equal(a, b)


class HeadSteps(keras.callbacks.Callback):
    """Keeps how far the head's kernel moves at each step."""

    def on_train_begin(self, logs=None):
        self.moves = []
        self.before = self.model.head.kernel.numpy()

    def on_train_batch_end(self, batch, logs=None):
        after = self.model.head.kernel.numpy()
        self.moves.append(float(np.abs(after - self.before).max()))
        self.before = after


def head_moves(schedule, **fit):
    """Moves of the head under SGD and a gradient that never changes, in units of `peak_lr`."""
    keras.utils.set_random_seed(0)
    head = keras.layers.Dense(1, use_bias=False, name="new")
    model = ktf.TransferModel(backbone(), head, groups="blocks")
    model.compile(keras.optimizers.SGD(0.01), loss=lambda y, p: keras.ops.mean(p))
    stage = ktf.Stage("probe", depth=1, epochs=4, peak_lr=0.5, schedule=schedule)
    seen = HeadSteps()
    callbacks = [unfreezing(model, ktf.UnfreezingPlan([stage])), seen]
    model.fit(np.ones((40, 6)), np.ones((40, 1)), 4, verbose=0, callbacks=callbacks, **fit)
    gradient = np.abs(model.backbone(np.ones((1, 6), "float32")).numpy()).max()
    return np.array(seen.moves) / gradient / 0.5


def test_a_stages_schedule_shapes_the_steps_that_weights_take():
    steps = 40
    wanted = [
        ktf.schedules.slanted_triangular(t, total_steps=steps, peak_lr=1.0) for t in range(steps)
    ]
    np.testing.assert_allclose(head_moves("slanted_triangular"), wanted, rtol=1e-3)
    np.testing.assert_allclose(head_moves(None), np.ones(steps), rtol=1e-3)


def test_a_run_that_starts_inside_a_stage_goes_on_with_its_schedule():
    whole = head_moves("slanted_triangular")
    later = head_moves("slanted_triangular", initial_epoch=2)
    np.testing.assert_allclose(later, whole[20:], rtol=1e-3)


class Interrupts(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        raise KeyboardInterrupt


def test_after_an_interrupted_fit_the_plain_optimizer_can_be_had_back():
    model = toys.compiled(toys.stock(), keras.optimizers.Adam(1e-3))
    with pytest.raises(KeyboardInterrupt, match=r"^$"):
        toys.fit(model, toys.PLAN, [Interrupts()])
    assert type(model.optimizer) is not keras.optimizers.Adam
    for _ in range(2):  # the second time it is plain already
        ktf.callbacks.GradualUnfreezing.give_back_optimizer(model)
        assert type(model.optimizer) is keras.optimizers.Adam
    assert int(model.optimizer.iterations) == 1
    model.fit(*toys.data(), verbose=0)
    with pytest.raises(ValueError, match="is not compiled"):
        ktf.callbacks.GradualUnfreezing.give_back_optimizer(toys.stock())
