import keras
import numpy as np
import pytest

import keras_transfer as ktf

GROUPS = ("stem", "mid", "new")


def make_model(optimizer=None, kind="transfer"):
    backbone = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(8, name="stem"),
            keras.layers.Dense(8, name="mid"),
        ]
    )
    head = keras.layers.Dense(2, name="new")
    if kind == "transfer":
        model = ktf.TransferModel(backbone, head, groups="blocks")
    else:
        model = keras.Sequential([backbone, head])
    if optimizer is not None:
        model.compile(optimizer, "mse")
    return model


def describe(stages, optimizer="adam", kind="transfer", **options):
    groups = None if kind == "transfer" else "blocks"
    plan = ktf.UnfreezingPlan(stages)
    return ktf.describe(make_model(optimizer, kind), plan, groups, **options)


@pytest.mark.parametrize("kind", ["transfer", "stock"])
def test_the_rate_of_every_group_in_every_stage_is_shown(kind):
    description = describe(
        [
            ktf.Stage("probe", depth=1, epochs=1),
            ktf.Stage("top", depth=2, epochs=1, peak_lr=0.1, lr_decay=0.5),
            ktf.Stage("all", depth="all", epochs=1, lr_decay=0.1),
        ],
        keras.optimizers.Adam(0.02),
        kind,
    )
    rates = [stage.rates for stage in description.stages]
    assert rates[0] == pytest.approx({"new": 0.02})  # the optimizer's own
    assert rates[1] == pytest.approx({"mid": 0.05, "new": 0.1})
    assert rates[2] == pytest.approx({"stem": 0.001, "mid": 0.01, "new": 0.1})
    table = [line.split() for line in str(description).splitlines()]
    start = table.index(["learning", "rate", "of", "probe", "top", "all"])
    assert table[start + 2 : start + 5] == [
        ["stem", "-", "-", "0.001"],
        ["mid", "-", "0.05", "0.01"],
        ["new", "0.02", "0.1", "0.1"],
    ]


def test_one_rate_for_all_groups_needs_no_second_table():
    text = str(describe([ktf.Stage("all", depth="all", epochs=1, peak_lr=0.1)]))
    assert "learning rate of" not in text
    assert "0.1" in text


def test_the_rates_are_those_that_training_has():
    model = make_model("sgd")
    plan = ktf.recipes.gradual_unfreezing(2, 1, 1)
    description = ktf.describe(model, plan)
    unfreezing = ktf.callbacks.GradualUnfreezing(plan, verbose=0)
    x, y = np.ones((4, 4)), np.ones((4, 2))
    history = model.fit(x, y, callbacks=[unfreezing], verbose=0).history
    for index, stage in enumerate(description.stages):
        seen = {name: history[f"learning_rate/{name}"][index] for name in GROUPS}
        seen = {name: rate for name, rate in seen.items() if not np.isnan(rate)}
        assert seen == pytest.approx(stage.rates)
        assert history["trainable_parameters"][index] == stage.trainable_parameters


def test_an_optimizer_with_a_schedule_has_no_rate_to_show():
    schedule = keras.optimizers.schedules.CosineDecay(0.1, 10)
    description = describe(
        [ktf.Stage("all", depth="all", epochs=1)], keras.optimizers.SGD(schedule)
    )
    assert description.stages[0].rates == {}
    assert "?" in str(description).splitlines()[2]


# --- Warnings ---------------------------------------------------------------------------------


def test_a_rate_of_zero_is_warned_of_with_its_stage_and_groups():
    stages = [
        ktf.Stage("probe", depth=1, epochs=1),
        ktf.Stage("all", depth="all", epochs=1, peak_lr=0.1),
    ]
    description = describe(stages, keras.optimizers.SGD(0.0))
    assert description.warnings == ("stage 'probe' gives new a learning rate of 0.",)
    assert "Warning: stage 'probe' gives new a learning rate of 0." in str(description)
    # A decay that leaves nothing of the rate in float32.
    tiny = [ktf.Stage("all", depth="all", epochs=1, peak_lr=1e-4, lr_decay=1e-25)]
    assert describe(tiny).warnings == ("stage 'all' gives stem a learning rate of 0.",)


@pytest.mark.parametrize(
    ("options", "epochs", "steps_per_epoch", "warning"),
    [
        (
            {"schedule": "slanted_triangular"},
            2,
            4,
            "has 8 steps, too few for the rise of its schedule",
        ),
        ({"schedule": "slanted_triangular"}, 2, 5, None),
        ({"schedule": "one_cycle"}, 2, None, None),
        ({"schedule": "constant"}, 1, 1, None),
        ({}, 1, 1, None),
        (
            {"schedule": "warmup_cosine", "warmup_epochs": 0.1},
            2,
            4,
            "has a warm-up of less than one step",
        ),
        ({"schedule": "warmup_cosine", "warmup_epochs": 0.5}, 2, 4, None),
        ({"schedule": "warmup_cosine", "warmup_epochs": 0}, 2, 4, None),
    ],
)
def test_a_stage_with_too_few_steps_for_its_warm_up_is_warned_of(
    options, epochs, steps_per_epoch, warning
):
    stage = ktf.Stage("all", depth="all", epochs=epochs, peak_lr=0.1, **options)
    description = describe([stage], steps_per_epoch=steps_per_epoch)
    assert description.warnings == (() if warning is None else (f"stage 'all' {warning}.",))


def test_a_stage_that_changes_nothing_is_warned_of():
    stages = [
        ktf.Stage("a", depth=1, epochs=1, peak_lr=0.1),
        ktf.Stage("b", depth=1, epochs=1, peak_lr=0.1),
        ktf.Stage("c", depth=1, epochs=1, peak_lr=0.2),
    ]
    assert describe(stages).warnings == (
        "stage 'b' trains the same variables at the same rates as 'a'.",
    )


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"plan": "lp_ft"}, TypeError, "`plan` must be an `UnfreezingPlan`"),
        ({"steps_per_epoch": 0}, ValueError, "`steps_per_epoch` must be at least 1"),
        ({"groups": "blocks"}, ValueError, "has its own layer groups; `groups` is for stock"),
    ],
)
def test_bad_arguments_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        ktf.describe(make_model("adam"), **{"plan": ktf.recipes.lp_ft(), **arguments})


def test_a_model_that_is_not_compiled_has_neither_rates_nor_optimizer_memory():
    description = ktf.describe(
        make_model(), ktf.UnfreezingPlan([ktf.Stage("a", depth=1, epochs=1)])
    )
    assert description.stages[0].rates == {}
    assert description.stages[0].optimizer_bytes is None


@pytest.mark.usually("stock-adam", "transfer-sgd")
@pytest.mark.parametrize(
    ("kind", "optimizer"),
    [("stock", "adam"), ("transfer", "adam"), ("transfer", "sgd"), ("transfer", "muon")],
)
def test_what_is_described_is_what_training_does(kind, optimizer):
    class Held(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            self.bytes = []

        def on_epoch_end(self, epoch, logs=None):
            states = [v for v in self.model.optimizer.variables if v.shape != ()]
            kept = [v for v in states if "multipliers" not in v.path]
            self.bytes.append(sum(v.numpy().nbytes for v in kept))

    stages = [ktf.Stage(f"top {n}", depth=n, epochs=1) for n in (1, 2, 3)]
    plan = ktf.UnfreezingPlan(stages)
    model, groups = make_model(optimizer, kind), None if kind == "transfer" else "blocks"
    description = ktf.describe(model, plan, groups)
    held = Held()
    callback = ktf.callbacks.GradualUnfreezing(plan, groups, verbose=0)
    history = model.fit(
        np.ones((8, 4)), np.ones((8, 2)), epochs=3, verbose=0, callbacks=[callback, held]
    ).history
    rows = description.stages
    assert [row.trainable_parameters for row in rows] == history["trainable_parameters"]
    for name in GROUPS:
        trains = [not np.isnan(rate) for rate in history[f"learning_rate/{name}"]]
        assert [name in row.groups for row in rows] == trains
    # Scalars (step counters, the rate) are not counted.
    assert [row.optimizer_bytes for row in rows] == pytest.approx(held.bytes, abs=64)
    assert (held.bytes[2] > held.bytes[0]) == (optimizer != "sgd")


def test_a_stock_models_choices_are_noted():
    text = str(describe([ktf.Stage("all", depth="all", epochs=1)], kind="stock"))
    assert "The head starts after the nested model 'sequential'. BatchNorm: freeze." in text


@pytest.mark.parametrize(
    ("accumulate", "stage", "steps", "warning"),
    [
        # One-cycle rises over a quarter of the steps, so 4 are enough, and 3 are not.
        (None, {"schedule": "one_cycle"}, 4, None),
        (None, {"schedule": "one_cycle"}, 3, "has 3 steps, too few for the rise"),
        (4, {"schedule": "one_cycle"}, 12, "has 3 updates, too few for the rise"),
        (4, {"schedule": "warmup_cosine", "warmup_epochs": 0.1}, 16, "less than one update"),
        (None, {"schedule": "warmup_cosine", "warmup_epochs": 0.5}, 1, "less than one step"),
        # The rise is half of an epoch, and must leave a step for the fall.
        (None, {"schedule": "warmup_cosine", "warmup_epochs": 0.9}, 1, "has 1 steps, too few"),
        (8, {}, 5, "has 5 steps, too few for one update"),
    ],
)
def test_warm_ups_are_judged_by_the_shape_that_training_makes(accumulate, stage, steps, warning):
    backbone = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    model = ktf.TransferModel(backbone, keras.layers.Dense(1))
    model.compile(keras.optimizers.SGD(0.1, gradient_accumulation_steps=accumulate), "mse")
    plan = ktf.UnfreezingPlan([ktf.Stage("a", depth=1, epochs=1, **stage)])
    warnings = ktf.describe(model, plan, steps_per_epoch=steps).warnings
    assert any(warning in text for text in warnings) if warning else warnings == ()
