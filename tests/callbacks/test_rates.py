"""Who owns the learning rate: each line of the rule, seen in what weights do inside `fit`."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_transfer as ktf
from keras_transfer.optimizers import discriminative, find_discriminative

GROUPS = ("stem", "mid", "top")


def make_model(optimizer, kind="transfer"):
    keras.utils.set_random_seed(0)
    backbone = keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(8, "tanh", name="stem"),
            keras.layers.Dense(8, "tanh", name="mid"),
        ]
    )
    head = keras.layers.Dense(3, name="top")
    if kind == "transfer":
        model = ktf.TransferModel(backbone, head, groups="blocks")
    else:
        model = keras.Sequential([backbone, head])
    model.compile(optimizer, "mse")
    return model


class Moves(keras.callbacks.Callback):
    """How far each group moved in each epoch of one step: under Lion just its rate."""

    def on_train_begin(self, logs=None):
        self.kernels = {v.path.split("/")[-2]: v for v in self.model.weights if v.name == "kernel"}
        self.epochs = []
        self.before = self._read()

    def _read(self):
        return {name: self.kernels[name].numpy() for name in GROUPS}

    def on_epoch_end(self, epoch, logs=None):
        after = self._read()
        self.epochs.append([float(np.abs(after[n] - self.before[n]).max()) for n in GROUPS])
        self.before = after


class Assign(keras.callbacks.Callback):
    """What a user does by hand: `rates[epoch]` is assigned when the epoch begins."""

    def __init__(self, rates):
        super().__init__()
        self.rates = rates

    def on_epoch_begin(self, epoch, logs=None):
        if epoch in self.rates:
            self.model.optimizer.learning_rate = self.rates[epoch]


def fit(model, stages, *callbacks, data=None, **options):
    plan = ktf.UnfreezingPlan(stages)
    groups = None if isinstance(model, ktf.TransferModel) else "blocks"
    unfreezing = ktf.callbacks.GradualUnfreezing(plan, groups=groups, verbose=0)
    seen = Moves()
    random = np.random.default_rng(0)
    data = data or (random.normal(size=(8, 6)), random.normal(size=(8, 3)))
    history = model.fit(
        *data,
        epochs=plan.total_epochs,
        verbose=0,
        callbacks=[unfreezing, *callbacks, seen],
        **options,
    )
    return np.array(seen.epochs), history.history


def assert_rates(moves, head, ratios):
    """`ratios` are those of stem, mid and top in each epoch."""
    np.testing.assert_allclose(moves, np.array(head)[:, None] * np.array(ratios), rtol=2e-2)


STAGES = [
    ktf.Stage("half", depth="all", epochs=2, peak_lr=0.08, lr_decay=0.5),
    ktf.Stage("quarter", depth="all", epochs=2, lr_decay=0.25),  # leaves the rate alone
    ktf.Stage("top", depth=2, epochs=1, peak_lr=0.02),
]
RATIOS = [[0.25, 0.5, 1]] * 2 + [[0.0625, 0.25, 1]] * 2 + [[0, 1, 1]]


@pytest.mark.usually("stock")
@pytest.mark.parametrize("kind", ["transfer", "stock"])
def test_peak_lr_is_assigned_once_and_a_stage_without_one_leaves_the_rate_alone(kind):
    moves, history = fit(make_model(keras.optimizers.Lion(0.9), kind), STAGES)
    head = [0.08, 0.08, 0.08, 0.08, 0.02]
    assert_rates(moves, head, RATIOS)
    columns = np.array([history[f"learning_rate/{name}"] for name in GROUPS]).T
    # A frozen group has no rate.
    assert np.isnan(columns[4, 0])
    np.testing.assert_allclose(np.nan_to_num(columns), np.array(head)[:, None] * RATIOS, rtol=1e-6)
    assert history["stage"] == [0, 0, 1, 1, 2]
    assert history["trainable_parameters"] == [155] * 4 + [99]


RULES = {
    "by hand": (lambda: Assign({1: 0.04}), [0.08, 0.04, 0.04, 0.04, 0.02]),
    "scheduler": (
        lambda: keras.callbacks.LearningRateScheduler(lambda epoch, lr: lr / 2 if epoch else lr),
        [0.08, 0.04, 0.02, 0.01, 0.01],
    ),
    "plateau": (
        lambda: keras.callbacks.ReduceLROnPlateau("loss", patience=1, min_delta=9e9, factor=0.5),
        [0.08, 0.08, 0.04, 0.02, 0.02],
    ),
}


@pytest.mark.usually("plateau-True")
@pytest.mark.parametrize(
    ("rule", "scaled"),
    [("by hand", False), ("scheduler", False), ("plateau", False), ("plateau", True)],
)
def test_what_the_user_assigns_stands_until_the_next_peak_lr_and_keeps_the_ratios(rule, scaled):
    make, head = RULES[rule]
    optimizer = keras.optimizers.Lion(0.9)
    if scaled:
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    moves, _ = fit(make_model(optimizer), STAGES, make())
    assert_rates(moves, head, RATIOS)


def test_a_learning_rate_schedule_of_the_users_keeps_the_ratios():
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([1, 2], [0.08, 0.04, 0.02])
    stages = [
        ktf.Stage("half", depth="all", epochs=3, lr_decay=0.5),
        ktf.Stage("quarter", depth="all", epochs=1, lr_decay=0.25),
    ]
    moves, history = fit(make_model(keras.optimizers.Lion(schedule)), stages)
    assert_rates(moves, [0.08, 0.08, 0.04, 0.02], [RATIOS[0]] * 3 + [RATIOS[2]])
    assert history["learning_rate/top"][-1] == pytest.approx(0.02)


@pytest.mark.parametrize("argument", [{"peak_lr": 0.1}, {"schedule": "one_cycle"}])
@pytest.mark.parametrize("kind", ["transfer", "stock"])
def test_a_rate_of_the_plan_beside_a_learning_rate_schedule_is_an_error_at_the_start(
    argument, kind
):
    schedule = keras.optimizers.schedules.CosineDecay(0.1, 10)
    model = make_model(keras.optimizers.SGD(schedule), kind)
    before, optimizer = model.get_weights(), model.optimizer
    stages = [ktf.Stage("a", depth=1, epochs=1), ktf.Stage("b", depth=1, epochs=1, **argument)]
    message = rf"Stage 'b' sets `{next(iter(argument))}`, but .* is a CosineDecay"
    with pytest.raises(ValueError, match=message):
        fit(model, stages)
    with pytest.raises(ValueError, match=message):
        ktf.describe(model, ktf.UnfreezingPlan(stages), None if kind == "transfer" else "blocks")
    assert model.optimizer is optimizer
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))


def test_a_schedule_over_data_of_unknown_length_is_an_error_at_the_start():
    model = make_model("sgd")
    data = tf.data.Dataset.from_tensor_slices((np.ones((8, 6)), np.ones((8, 3))))
    data = data.filter(lambda x, y: True).batch(4)
    stages = [ktf.Stage("a", depth=1, epochs=1, schedule="one_cycle")]
    with pytest.raises(ValueError, match=r"Stage 'a' has schedule='one_cycle', .*steps_per_epoch"):
        fit(model, stages, data=(data,), shuffle=False)
    fit(model, stages, data=(data.repeat(),), shuffle=False, steps_per_epoch=2)


def test_an_optimizer_that_is_discriminative_already_is_used_as_it_is():
    optimizer = discriminative(keras.optimizers.Lion(0.9))
    model = make_model(optimizer)
    assert model.optimizer is optimizer
    fit(model, STAGES)
    assert model.optimizer is optimizer
    assert optimizer.group_steps == {"stem": 4, "mid": 5, "top": 5}


def test_the_optimizer_of_an_uncompiled_model_is_asked_for():
    model = ktf.TransferModel(
        keras.Sequential([keras.Input((6,)), keras.layers.Dense(2)]), keras.layers.Dense(1)
    )
    with pytest.raises(ValueError, match="compile"):
        fit(model, STAGES[:1])


# --- Nothing is traced anew -------------------------------------------------------------------


def test_changing_rates_retraces_nothing():
    traces = []

    def loss(y, p):
        traces.append(1)  # runs when the step is traced, not when it runs
        return keras.ops.mean((y - p) ** 2, axis=-1)

    class Restless(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            optimizer = find_discriminative(self.model.optimizer)
            optimizer.learning_rate = 1e-3 * (batch + 1)
            optimizer.set_multipliers({"stem": 0.1 * batch, "mid": 0.5})

    def traced(stages, *callbacks):
        model = make_model("adam")
        model.compile("adam", loss)
        traces.clear()
        fit(model, stages, *callbacks, data=(np.ones((32, 6)), np.ones((32, 3))), batch_size=8)
        return len(traces)

    one = [ktf.Stage("all", depth="all", epochs=4)]
    count = traced(one)
    assert count >= 1
    assert traced(one, Restless()) == count
    # A stage that trains the same variables at other rates is no reason either.
    rates = [
        ktf.Stage("a", depth="all", epochs=2, peak_lr=0.1, lr_decay=0.5),
        ktf.Stage("b", depth="all", epochs=1, peak_lr=0.01, lr_decay=0.1),
        ktf.Stage("c", depth="all", epochs=1),
    ]
    assert traced(rates) == count
    # Control: one that trains other variables is.
    assert traced([ktf.Stage("a", depth=1, epochs=2), *one]) == 2 * count


# --- Multipliers by dictionary ------------------------------------------------------------------


@pytest.mark.usually("transfer")
@pytest.mark.parametrize("kind", ["transfer", "stock"])
def test_a_stage_may_say_its_rates_by_dictionary(kind):
    stages = [
        ktf.Stage("a", depth="all", epochs=1, peak_lr=0.08, lr_multipliers={"s.*": 0.1, "mid": 2}),
        ktf.Stage("b", depth="all", epochs=1, lr_multipliers={"stem": 0.0}),
        ktf.Stage("c", depth="all", epochs=1),
    ]
    moves, _ = fit(make_model(keras.optimizers.Lion(0.9), kind), stages)
    assert_rates(moves, [0.08] * 3, [[0.1, 2, 1], [0, 1, 1], [1, 1, 1]])


def test_a_stage_that_says_no_rates_keeps_the_optimizers_multipliers_and_so_does_the_end(tmp_path):
    stages = [
        ktf.Stage("own", depth="all", epochs=1, peak_lr=0.08),
        ktf.Stage("plan", depth="all", epochs=1, lr_decay=0.25),
        ktf.Stage("own again", depth="all", epochs=1),
        ktf.Stage("last", depth="all", epochs=1, lr_decay=0.25),
    ]
    model = make_model(keras.optimizers.Lion(0.9))
    model.optimizer.set_multipliers({"stem": 0.5})
    saved = keras.callbacks.ModelCheckpoint(str(tmp_path / "{epoch}.weights.h5"), verbose=0)
    saved.save_weights_only = True
    ratios = [[0.5, 1, 1], [0.0625, 0.25, 1], [0.5, 1, 1], [0.0625, 0.25, 1]]
    moves, _ = fit(model, stages, saved)
    assert_rates(moves, [0.08] * 4, ratios)
    assert model.optimizer.multipliers == {"stem": 0.5, "mid": 1, "top": 1}
    # A file written in the middle of a stage of its own holds the user's, not the stage's.
    other = make_model(keras.optimizers.Lion(0.9))
    other.load_weights(tmp_path / "2.weights.h5")
    assert other.optimizer.multipliers == {"stem": 0.5, "mid": 1, "top": 1}


def test_the_dry_run_knows_both_and_warns_of_a_multiplier_of_0():
    model = make_model(keras.optimizers.SGD(0.1))
    model.optimizer.set_multipliers({"stem": 0.0})
    plan = ktf.UnfreezingPlan(
        [
            ktf.Stage("own", depth="all", epochs=1),
            ktf.Stage("dict", depth="all", epochs=1, lr_multipliers={"mid": 0.0, "stem": 3.0}),
        ]
    )
    dry_run = ktf.describe(model, plan)
    assert dry_run.stages[0].rates == pytest.approx({"stem": 0, "mid": 0.1, "top": 0.1})
    assert dry_run.stages[1].rates == pytest.approx({"stem": 0.3, "mid": 0, "top": 0.1})
    assert "0 to 0.3" in str(dry_run)
    expected = ["stage 'own' gives stem a learning rate of 0", "stage 'dict' gives mid a learning"]
    uncompiled = ktf.TransferModel(
        keras.Sequential([keras.Input((6,)), keras.layers.Dense(8, name="mid")]),
        keras.layers.Dense(3, name="top"),
        groups="blocks",
    )
    zero = ktf.Stage("dict", depth="all", epochs=1, lr_multipliers={"mid": 0})
    unknown_rate = ktf.describe(uncompiled, ktf.UnfreezingPlan([zero]))
    for text in expected:
        assert any(text in warning for warning in dry_run.warnings), dry_run.warnings
    assert any(expected[1] in warning for warning in unknown_rate.warnings)


def test_a_multiplier_for_an_unknown_group_is_an_error_at_the_start():
    model = make_model("sgd")
    before = model.get_weights()
    stages = [
        ktf.Stage("a", depth=1, epochs=1),
        ktf.Stage("b", depth=1, epochs=1, lr_multipliers={"midd": 0.1}),
    ]
    message = r"Stage 'b', `lr_multipliers`: .*'midd'.*Did you mean 'mid'"
    for run in (
        lambda: fit(model, stages),
        lambda: ktf.describe(model, ktf.UnfreezingPlan(stages)),
    ):
        with pytest.raises(ValueError, match=message):
            run()
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))


def test_multipliers_of_a_stage_are_checked_and_survive_json():
    stage = ktf.Stage("a", depth=1, epochs=1, lr_multipliers={"s.*": 0.5, "head": 1})
    plan = ktf.UnfreezingPlan([stage])
    assert ktf.UnfreezingPlan.from_json(plan.to_json()) == plan
    assert hash(stage) == hash(ktf.Stage.from_config(stage.get_config()))
    with pytest.raises(ValueError, match="Stage 'a': give `lr_decay` or `lr_multipliers`"):
        ktf.Stage("a", depth=1, epochs=1, lr_decay=0.5, lr_multipliers={"stem": 1})
    with pytest.raises(ValueError, match=r"`lr_multipliers\['stem'\]` must be .*at least 0"):
        ktf.Stage("a", depth=1, epochs=1, lr_multipliers={"stem": -1})
    with pytest.raises(TypeError, match="`lr_multipliers` must map"):
        ktf.Stage("a", depth=1, epochs=1, lr_multipliers=0.5)


def test_a_range_test_keeps_the_ratios_of_the_dictionary_and_of_the_optimizer():
    def final_moves(stage):
        model = make_model(keras.optimizers.Lion(0.9))
        model.optimizer.set_multipliers({"mid": 0.5})
        seen = []

        class Spy(keras.utils.PyDataset):
            def __len__(self):
                return 2

            def __getitem__(self, index):
                seen.append([v.numpy() for v in model.trainable_variables if v.name == "kernel"])
                return np.ones((4, 6)), np.ones((4, 3))

        ktf.find_lr(model, Spy(), ktf.UnfreezingPlan([stage]), num_steps=20, verbose=0)
        assert model.optimizer.multipliers == {"stem": 1, "mid": 0.5, "top": 1}
        sizes = [np.abs(b - a).max() for a, b in zip(seen[2], seen[3], strict=True)]
        return np.array(sizes) / sizes[-1]

    own = ktf.Stage("own", depth="all", epochs=1)
    by_dictionary = ktf.Stage("dict", depth="all", epochs=1, lr_multipliers={"stem": 0.1})
    np.testing.assert_allclose(final_moves(own), [1, 0.5, 1], rtol=0.2)
    np.testing.assert_allclose(final_moves(by_dictionary), [0.1, 1, 1], rtol=0.2)


@pytest.mark.parametrize("rate", [float("nan"), -1.0])
@pytest.mark.parametrize("kind", ["transfer", "stock"])
def test_a_rate_that_was_assigned_and_is_none_is_an_error_when_fit_begins(kind, rate):
    model = make_model("sgd", kind)
    model.optimizer.learning_rate = rate
    before = model.get_weights()
    with pytest.raises(ValueError, match=r"`learning_rate` must be .*Received: learning_rate="):
        fit(model, STAGES[:1])
    if kind == "transfer":
        with pytest.raises(ValueError, match="`learning_rate` must be"):
            model.fit(np.ones((8, 6)), np.ones((8, 3)), verbose=0)
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))
