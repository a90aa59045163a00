"""A stage's schedule runs in the graph, over the stage's own updates, however steps are run."""

import keras
import numpy as np
import pytest

import keras_transfer as ktf
from keras_transfer.schedules import functions

PEAK = 0.5
STEPS = 5  # of an epoch


class Travelled(keras.callbacks.Callback):
    """How far the head moves in each epoch, which is read where steps run several at once."""

    def on_train_begin(self, logs=None):
        self.epochs = []
        self.before = self.model.head.kernel.numpy()

    def on_epoch_end(self, epoch, logs=None):
        after = self.model.head.kernel.numpy()
        self.epochs.append(float(np.abs(after - self.before).max()))
        self.before = after


class Scores(keras.callbacks.Callback):
    def __init__(self, scores):
        super().__init__()
        self.scores = scores

    def on_epoch_end(self, epoch, logs=None):
        logs["score"] = self.scores[epoch]


def travel(stages, optimizer=None, callbacks=(), **compile_options):
    """Distances of the head under SGD and a gradient of 1 that never changes."""
    backbone = keras.Sequential(
        [keras.Input((6,)), keras.layers.Dense(8, name="stem"), keras.layers.Dense(8, name="mid")]
    )
    # The backbone must not move the gradient of the head, whichever stage lets it train.
    for layer in backbone.layers:
        layer.kernel.assign(np.zeros(layer.kernel.shape))
        layer.bias.assign(np.ones(layer.bias.shape))
    head = keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros", name="new")
    model = ktf.TransferModel(backbone, head, groups="blocks")
    optimizer = optimizer or keras.optimizers.SGD(0.01)
    model.compile(optimizer, loss=lambda y, p: keras.ops.mean(p), **compile_options)
    plan = ktf.UnfreezingPlan(stages)
    seen = Travelled()
    unfreezing = ktf.callbacks.GradualUnfreezing(plan, verbose=0)
    x, y = np.ones((4 * STEPS, 6)), np.ones((4 * STEPS, 1))
    model.fit(
        x,
        y,
        batch_size=4,
        epochs=plan.total_epochs,
        verbose=0,
        callbacks=[*callbacks, unfreezing, seen],
    )
    return seen.epochs


def by_formula(function, epochs, *, steps=STEPS, **options):
    """The sum of the rates of each epoch's updates."""
    total = steps * epochs
    rates = [function(t, total_steps=total, peak_lr=PEAK, **options) for t in range(total)]
    return np.reshape(rates, (epochs, steps)).sum(axis=1)


MODES = {
    "one step": {},
    "several steps at once": {"steps_per_execution": 3},
    "XLA": {"jit_compile": True},
    "eager": {"run_eagerly": True},
}


def one_stage(schedule, **options):
    return [ktf.Stage("all", depth=1, epochs=4, peak_lr=PEAK, schedule=schedule, **options)]


@pytest.mark.usually("several steps at once")
@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_a_schedule_runs_over_the_steps_of_its_stage_in_every_mode(mode):
    wanted = by_formula(functions.slanted_triangular, 4)
    np.testing.assert_allclose(travel(one_stage("slanted_triangular"), **mode), wanted, rtol=1e-4)


@pytest.mark.parametrize("schedule", ["constant", "one_cycle", "warmup_cosine"])
def test_every_schedule_has_its_own_shape(schedule):
    wanted = by_formula(getattr(functions, schedule), 4)
    np.testing.assert_allclose(travel(one_stage(schedule)), wanted, rtol=1e-4)


def test_a_warm_up_is_said_in_epochs():
    distances = travel(one_stage("warmup_cosine", warmup_epochs=2))
    wanted = by_formula(functions.warmup_cosine, 4, warmup_steps=10)
    np.testing.assert_allclose(distances, wanted, rtol=1e-4)


@pytest.mark.usually("several")
@pytest.mark.parametrize("mode", [{}, {"steps_per_execution": 5}], ids=["one", "several"])
def test_with_accumulated_gradients_a_schedule_runs_over_the_updates(mode):
    # 20 batches make 4 updates, one in each epoch.
    optimizer = keras.optimizers.SGD(0.01, gradient_accumulation_steps=5)
    distances = travel(one_stage("slanted_triangular", warmup_epochs=1), optimizer, **mode)
    wanted = by_formula(functions.slanted_triangular, 4, steps=1, warmup_fraction=0.25)
    np.testing.assert_allclose(distances, wanted, rtol=1e-4)


@pytest.mark.usually("several")
@pytest.mark.parametrize("mode", [{}, {"steps_per_execution": 2}], ids=["one", "several"])
def test_after_a_stage_that_ends_early_the_next_begins_its_own_schedule(mode):
    stages = [
        ktf.Stage(
            "probe",
            depth=1,
            epochs=8,
            peak_lr=PEAK,
            schedule="one_cycle",
            monitor="score",
            mode="max",
            patience=1,
            restore_best_weights=False,
        ),
        ktf.Stage("top", depth=1, epochs=3, peak_lr=PEAK, schedule="slanted_triangular"),
    ]
    scores = Scores([1.0, 2.0, 1.5, 1.0, 1.0, 1.0])
    distances = travel(stages, callbacks=[scores], **mode)
    first = by_formula(functions.one_cycle, 8)[:3]
    second = by_formula(functions.slanted_triangular, 3)
    np.testing.assert_allclose(distances, [*first, *second], rtol=1e-4)


def test_after_a_schedule_a_stage_without_one_is_at_its_full_rate():
    stages = [
        ktf.Stage("probe", depth=1, epochs=2, peak_lr=PEAK, schedule="slanted_triangular"),
        ktf.Stage("top", depth=1, epochs=1),
    ]
    assert travel(stages)[2] == pytest.approx(STEPS * PEAK, rel=1e-4)


# --- Accumulation windows and stages -------------------------------------------------------------


class Biases(keras.callbacks.Callback):
    """The bias of a layer after each batch."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.seen = layer, []

    def on_train_batch_end(self, batch, logs=None):
        self.seen.append(round(float(self.layer.bias.numpy()[0]), 6))


def constant_gradient(optimizer):
    """A model whose biases have a gradient of 1 in every batch."""
    stem = keras.layers.Dense(1, kernel_initializer="zeros", name="stem")
    head = keras.layers.Dense(1, kernel_initializer="ones", name="new")
    # What moves the head's kernel would move the gradient of the stem.
    stem.build((None, 1))
    backbone = keras.Sequential([keras.Input((1,)), stem])
    model = ktf.TransferModel(backbone, head, groups="blocks")
    model.compile(optimizer, loss=lambda y, p: keras.ops.mean(p))
    return model, stem, head


def fit_steps(model, stages, steps, *callbacks, **options):
    plan = ktf.UnfreezingPlan(stages)
    unfreezing = ktf.callbacks.GradualUnfreezing(plan, verbose=0)
    data = np.ones((steps, 1)), np.ones((steps, 1))
    options = {"epochs": plan.total_epochs, "shuffle": False, "verbose": 0, **options}
    model.fit(*data, batch_size=1, callbacks=[unfreezing, *callbacks], **options)


def test_a_group_unfrozen_in_the_middle_of_an_accumulation_window_starts_as_new():
    sgd = keras.optimizers.SGD(1.0, gradient_accumulation_steps=2)
    model, stem, _ = constant_gradient(sgd)
    seen = Biases(stem)
    # The head's kernel stays at 1, so that the stem's gradient is 1.
    stages = [
        ktf.Stage("a", depth=1, epochs=1, lr_multipliers={"head": 0}),
        ktf.Stage("b", depth=2, epochs=2, lr_multipliers={"head": 0}),
    ]
    fit_steps(model, stages, 3, seen)
    assert seen.seen == [0, 0, 0, 0, -1, -1, -2, -2, -3]
    assert model.optimizer.group_steps == {"stem": 3, "new": 4}


def test_a_schedule_under_accumulation_is_as_long_as_the_updates_that_really_come():
    sgd = keras.optimizers.SGD(1.0, gradient_accumulation_steps=2)
    model, _, head = constant_gradient(sgd)
    seen = Biases(head)
    options = {"depth": 1, "epochs": 1, "peak_lr": 1.0, "schedule": "one_cycle"}
    fit_steps(model, [ktf.Stage("a", **options), ktf.Stage("b", **options)], 5, seen)
    moves = -np.diff([0, *seen.seen])
    expected = [functions.one_cycle(t, total_steps=2, peak_lr=1, warmup_steps=0) for t in range(2)]
    np.testing.assert_allclose(moves[moves != 0], expected * 2, rtol=1e-3)


def test_a_stage_that_is_shorter_than_one_accumulation_window_is_an_error_at_the_start():
    model, *_ = constant_gradient(keras.optimizers.SGD(1.0, gradient_accumulation_steps=8))
    stages = [ktf.Stage("long", depth=1, epochs=3), ktf.Stage("short", depth=1, epochs=1)]
    with pytest.raises(ValueError, match=r"Stage 'short' has 5 steps, .*gradient_accumulation_st"):
        fit_steps(model, stages, 5)


def test_gradients_that_a_file_holds_are_added_to_after_it_is_loaded(tmp_path):
    def make():
        return constant_gradient(keras.optimizers.SGD(1.0, gradient_accumulation_steps=2))

    stages = [ktf.Stage("all", depth=2, epochs=2)]
    whole, *_ = make()
    fit_steps(whole, stages, 3)
    first, *_ = make()
    fit_steps(first, stages, 3, epochs=1)
    first.save_weights(tmp_path / "half.weights.h5")
    second, *_ = make()
    second.load_weights(tmp_path / "half.weights.h5")
    fit_steps(second, stages, 3, initial_epoch=1)
    for a, b in zip(whole.get_weights(), second.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
