"""The options of every Keras optimizer keep their meaning: clipping, averages, accumulation..."""

import keras
import numpy as np
import pytest

from keras_transfer.optimizers import DiscriminativeOptimizer, discriminative, find_discriminative
from tests.optimizers import toys

KO = keras.optimizers
RUN_MODES = {
    "graph": {},
    "eager": {"run_eagerly": True},
    "compiled": {"jit_compile": True},
    "several_steps": {"steps_per_execution": 3},
}
OPTIONS = {
    "clipnorm": {"clipnorm": 0.05},
    "clipvalue": {"clipvalue": 0.01},
    "global_clipnorm": {"global_clipnorm": 0.05},
    "ema": {"use_ema": True, "ema_momentum": 0.9},
    "ema_overwrite": {"use_ema": True, "ema_momentum": 0.9, "ema_overwrite_frequency": 3},
    "accumulate": {"gradient_accumulation_steps": 3, "use_ema": True, "clipnorm": 0.05},
    "loss_scale_factor": {"loss_scale_factor": 64.0},
    "schedule": {"learning_rate": KO.schedules.CosineDecay(1e-2, 10)},
    "callable": {"learning_rate": lambda: 5e-3},
}


# In the other modes only what is more than arithmetic on a gradient: it counts steps and keeps
# state of its own. The rest of the table takes a minute.
EVERY_MODE = ("ema_overwrite", "accumulate")
CASES = [
    pytest.param(
        options,
        RUN_MODES[mode],
        id=f"{option}-{mode}",
        marks=[] if mode == "eager" or option in EVERY_MODE else pytest.mark.exhaustive,
    )
    for option, options in OPTIONS.items()
    for mode in RUN_MODES
]


@pytest.mark.usually(
    "global_clipnorm-eager", "ema_overwrite-graph", "accumulate-eager", "loss_scale_factor-eager"
)
@pytest.mark.parametrize(("options", "mode"), CASES)
def test_one_group_with_options_is_the_plain_optimizer_bit_by_bit(options, mode):
    options = {"learning_rate": 1e-2, **options}
    data = toys.make_data(32)
    plain = toys.fit(toys.make_model(), KO.AdamW(**options), data, **mode)
    wrapped = toys.fit(toys.make_model(), discriminative(KO.AdamW(**options)), data, **mode)
    assert toys.distance(plain, wrapped) == 0.0


@pytest.mark.usually("global_clipnorm")
@pytest.mark.parametrize("option", ["clipnorm", "clipvalue", "global_clipnorm"])
def test_groups_at_rate_one_clip_as_the_plain_optimizer_does(option):
    # The global norm spans all groups: one clone's own would clip less.
    data = toys.make_data(32)
    options = OPTIONS[option]
    plain = toys.fit(toys.make_model(), KO.SGD(1e-1, **options), data)
    model = toys.make_model()
    optimizer = discriminative(KO.SGD(1e-1, **options))
    optimizer.set_groups(toys.group_variables(model))
    assert toys.distance(plain, toys.fit(model, optimizer, data)) == 0.0
    unclipped = toys.fit(toys.make_model(), KO.SGD(1e-1), data)
    assert toys.distance(plain, unclipped) > 1e-2, "the clip must bite"


def test_the_global_norm_leaves_frozen_groups_out():
    model = toys.make_model()
    groups = toys.group_variables(model)
    optimizer = discriminative(KO.SGD(1.0, global_clipnorm=0.5))
    optimizer.set_groups(groups)
    optimizer.build(groups["head"])
    before = toys.values(groups["head"])
    optimizer.apply([keras.ops.ones(v.shape) for v in groups["head"]], groups["head"])
    moved = [b - a for a, b in zip(before, toys.values(groups["head"]), strict=True)]
    norm = np.sqrt(sum((m**2).sum() for m in moved))
    np.testing.assert_allclose(norm, 0.5, rtol=1e-5)


# --- Moving averages --------------------------------------------------------------------


def union_built(optimizer, model):
    optimizer.build(model.trainable_variables)
    toys.train_only(model, "body")
    return optimizer


def square_model():
    """Stem and body of equal shapes: the trap of pairing by position is silent there."""
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [keras.Input((4,))] + [keras.layers.Dense(4, name=name) for name in ("stem", "body")]
    )


def square_data():
    rng = np.random.default_rng(0)
    return rng.normal(size=(2, 16, 4)).astype("float32")


def test_averages_of_frozen_groups_do_not_overwrite_what_trains():
    model = square_model()
    optimizer = union_built(discriminative(KO.SGD(1e-2, use_ema=True, ema_momentum=0.5)), model)
    before = toys.values(model.get_layer("stem").variables)
    toys.fit(model, optimizer, square_data())
    body = model.get_layer("body").variables
    averages = optimizer._table.averages_of(body)
    assert toys.distance(toys.values(body), toys.values(averages)) == 0.0
    assert toys.distance(before, toys.values(model.get_layer("stem").variables)) == 0.0
    assert toys.distance(before, toys.values(body)) > 1e-2


def test_control_stock_keras_overwrites_the_head_with_the_base():
    # Once Keras pairs averages by variable this fails, and the override can go.
    model = square_model()
    optimizer = union_built(KO.SGD(1e-2, use_ema=True, ema_momentum=0.5), model)
    before = toys.values(model.get_layer("stem").variables)
    toys.fit(model, optimizer, square_data())
    assert toys.distance(before, toys.values(model.get_layer("body").variables)) < 1e-6


def test_an_average_starts_from_the_variable_when_its_group_starts():
    model = toys.make_model()
    groups = toys.group_variables(model)
    optimizer = discriminative(KO.SGD(1e-1, use_ema=True, ema_momentum=0.9))
    optimizer.set_groups(groups)
    optimizer.build(groups["head"])
    toys.run(optimizer, groups["head"], 10)
    optimizer.build(model.trainable_variables)
    # Nothing of the body has moved yet; the end of `fit` must not move it either.
    before = toys.values(groups["body"])
    optimizer.finalize_variable_values(groups["body"])
    assert toys.distance(before, toys.values(groups["body"])) == 0.0
    kernel = groups["body"][0]
    average = None
    for step in range(3):
        toys.run(optimizer, model.trainable_variables, 1, first=step)
        value = np.array(kernel.numpy())
        average = value if average is None else 0.9 * average + 0.1 * value
    optimizer.finalize_variable_values(model.trainable_variables)
    np.testing.assert_allclose(kernel.numpy(), average, rtol=1e-6)


def test_averages_rest_while_their_group_is_frozen_again():
    model = toys.make_model()
    groups = toys.group_variables(model)
    optimizer = discriminative(KO.SGD(1e-1, use_ema=True))
    optimizer.set_groups(groups)
    optimizer.build(model.trainable_variables)
    toys.run(optimizer, model.trainable_variables, 4)
    rested = toys.values(optimizer._table.averages_of(groups["body"]))
    body = toys.values(groups["body"])
    optimizer.build(groups["head"])
    toys.run(optimizer, groups["head"], 4)
    optimizer.finalize_variable_values(groups["head"])
    assert toys.distance(rested, toys.values(optimizer._table.averages_of(groups["body"]))) == 0.0
    assert toys.distance(body, toys.values(groups["body"])) == 0.0


@pytest.mark.usually("True")
@pytest.mark.parametrize("swap_on_epoch", [False, True])
def test_swap_ema_weights_evaluates_the_averages(swap_on_epoch):
    data = toys.make_data(32)
    losses = {}
    for name in ("plain", "groups"):
        model = toys.make_model()
        optimizer = KO.Adam(1e-2, use_ema=True, ema_momentum=0.9)
        if name == "groups":
            optimizer = discriminative(optimizer)
            optimizer.set_groups(toys.group_variables(model))
        model.compile(optimizer, "mse")
        history = model.fit(
            *data,
            validation_data=data,
            batch_size=8,
            epochs=3,
            shuffle=False,
            verbose=0,
            callbacks=[keras.callbacks.SwapEMAWeights(swap_on_epoch=swap_on_epoch)],
        )
        losses[name] = (history.history["val_loss"], toys.values(model.variables))
    assert losses["plain"][0] == losses["groups"][0]
    assert toys.distance(losses["plain"][1], losses["groups"][1]) == 0.0


# --- Gradient accumulation ----------------------------------------------------------------


def test_with_accumulation_groups_and_stages_count_updates_not_batches():
    model = toys.make_model()
    groups = toys.group_variables(model)
    optimizer = discriminative(KO.SGD(1.0, gradient_accumulation_steps=4))
    optimizer.set_groups(groups)
    optimizer.build(groups["head"])
    optimizer.start_stage(KO.schedules.PiecewiseConstantDecay([1], [1.0, 0.0]))
    toys.run(optimizer, groups["head"], 8)
    assert optimizer.group_steps["head"] == 2
    assert int(optimizer.stage_step) == 2
    assert optimizer.group_learning_rates() == {"head": 0.0}
    optimizer.start_stage()
    assert int(optimizer.stage_step) == 0
    assert optimizer.group_learning_rates() == {"head": 1.0}


def test_accumulated_gradients_are_averaged_per_update():
    model = toys.make_model()
    groups = toys.group_variables(model)
    optimizer = discriminative(KO.SGD(1.0, gradient_accumulation_steps=2))
    optimizer.set_groups(groups)
    optimizer.set_multipliers({"body": 0.5})
    optimizer.build(model.trainable_variables)
    before = toys.values(groups["body"])
    for size in (1.0, 3.0):
        assert toys.distance(before, toys.values(groups["body"])) == 0.0
        optimizer.apply(
            [size * keras.ops.ones(v.shape) for v in model.trainable_variables],
            model.trainable_variables,
        )
    for a, b in zip(before, toys.values(groups["body"]), strict=True):
        np.testing.assert_allclose(b - a, -0.5 * 2.0, rtol=1e-6)


def test_gradients_accumulated_before_a_freeze_are_dropped():
    model = toys.make_model()
    groups = toys.group_variables(model)
    optimizer = discriminative(KO.SGD(1.0, gradient_accumulation_steps=2))
    optimizer.set_groups(groups)
    both = [*groups["body"], *groups["head"]]
    optimizer.build(both)
    toys.run(optimizer, both, 3)
    optimizer.build(groups["head"])
    assert all(not a.numpy().any() for a in optimizer._table.accumulators_of(groups["body"]))
    assert any(a.numpy().any() for a in optimizer._table.accumulators_of(groups["head"]))


# --- Weight decay -------------------------------------------------------------------------


def decay_only(optimizer, model, variables=None):
    """Applies one step with zero gradients, so that only the decay moves anything."""
    variables = variables or model.trainable_variables
    before = toys.values(variables)
    optimizer.apply([keras.ops.zeros(v.shape) for v in variables], variables)
    return [
        float(np.abs(1 - b / a).max()) if np.abs(a).min() > 0 else 0.0
        for a, b in zip(before, toys.values(variables), strict=True)
    ]


def nonzero(model):
    for variable in model.trainable_variables:
        variable.assign(np.ones(variable.shape))
    return model


def test_a_multiplier_scales_the_weight_decay():
    model = nonzero(toys.make_model())
    optimizer = discriminative(KO.AdamW(0.1, weight_decay=0.5))
    optimizer.set_groups(toys.group_variables(model))
    optimizer.set_multipliers({"stem": 0.0, "body": 0.1})
    shrunk = decay_only(optimizer, model)
    np.testing.assert_allclose(shrunk, [0, 0, 0.005, 0.005, 0.05, 0.05], atol=1e-6)


def test_what_the_user_excluded_from_weight_decay_stays_excluded():
    model = nonzero(toys.make_model())
    plain = KO.AdamW(0.1, weight_decay=0.5)
    plain.exclude_from_weight_decay(var_list=[model.get_layer("stem").kernel], var_names=["bias"])
    optimizer = discriminative(plain)
    assert decay_only(optimizer, model) == pytest.approx([0, 0, 0.05, 0, 0.05, 0], abs=1e-6)
    # On the discriminative optimizer itself, and through config and plain class, too.
    nonzero(model)
    again = DiscriminativeOptimizer.from_config(optimizer.get_config())
    assert decay_only(again, model) == pytest.approx([0, 0, 0.05, 0, 0.05, 0], abs=1e-6)
    nonzero(model)
    assert decay_only(optimizer.to_plain(), model) == pytest.approx(
        [0, 0, 0.05, 0, 0.05, 0], abs=1e-6
    )
    nonzero(model)
    own = discriminative(KO.AdamW(0.1, weight_decay=0.5))
    own.exclude_from_weight_decay(var_names=["kernel"])
    assert decay_only(own, model) == pytest.approx([0, 0.05] * 3, abs=1e-6)


def test_muon_decays_by_its_own_rule():
    model = nonzero(toys.make_model())
    optimizer = discriminative(KO.Muon(0.1, weight_decay=0.5, adam_weight_decay=0.25))
    optimizer.set_groups(toys.group_variables(model))
    optimizer.set_multipliers({"body": 0.5})
    shrunk = decay_only(optimizer, model)
    assert shrunk[1::2] == pytest.approx([0.025, 0.0125, 0.025], abs=1e-6)


# --- Loss scaling ---------------------------------------------------------------------------


@pytest.mark.exhaustive
def test_a_loss_scale_optimizer_keeps_its_scale_and_its_inner_state():
    data = toys.make_data(32)

    def make():
        return KO.LossScaleOptimizer(KO.Adam(1e-2), initial_scale=8.0, dynamic_growth_steps=3)

    plain_model = toys.make_model()
    toys.fit(plain_model, make(), data, epochs=4)
    model = toys.make_model()
    around = make()
    toys.fit(model, around, data, epochs=2)
    scale = float(around.dynamic_scale.numpy())
    assert discriminative(around) is around
    assert float(around.dynamic_scale.numpy()) == scale > 8.0
    find_discriminative(around).set_groups(toys.group_variables(model))
    toys.fit(model, around, data, epochs=2)
    assert find_discriminative(around).group_steps == dict.fromkeys(toys.GROUPS, 16)
    assert toys.distance(plain_model.get_weights(), model.get_weights()) == 0.0
    assert DiscriminativeOptimizer.give_back(around) is around
    assert type(around.inner_optimizer) is KO.Adam


def test_a_step_with_infinite_gradients_is_no_step_of_any_group():
    model = toys.make_model()
    around = discriminative(KO.LossScaleOptimizer(KO.Adam(1e-2), initial_scale=8.0))
    inner = find_discriminative(around)
    inner.set_groups(toys.group_variables(model))
    around.build(model.trainable_variables)
    before = model.get_weights()
    grads = [keras.ops.full(v.shape, np.inf) for v in model.trainable_variables]
    around.apply(grads, model.trainable_variables)
    assert toys.distance(before, model.get_weights()) == 0.0
    assert inner.group_steps == dict.fromkeys(toys.GROUPS, 0)
    assert float(around.dynamic_scale.numpy()) == 4.0


def test_mixed_float16_trains_late_groups():
    model = None
    before_policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = toys.make_model()
        toys.train_only(model, "head")
        model.compile(discriminative(KO.Adam(1e-2)), "mse")
        assert isinstance(model.optimizer, KO.LossScaleOptimizer)
        inner = find_discriminative(model.optimizer)
        inner.set_groups(toys.group_variables(model))
        data = toys.make_data(32)
        model.fit(*data, batch_size=8, epochs=1, verbose=0)
        frozen = toys.values(model.get_layer("body").variables)
        toys.train_only(model, "body", "head")
        inner.build(model.trainable_variables)
        model.make_train_function(force=True)
        model.fit(*data, batch_size=8, epochs=1, verbose=0)
    finally:
        keras.config.set_dtype_policy(before_policy)
    assert inner.group_steps == {"stem": 0, "body": 4, "head": 8}
    assert toys.distance(frozen, toys.values(model.get_layer("body").variables)) > 1e-3


# --- Sparse gradients and constraints -------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{}, {"clipnorm": 0.5}, {"global_clipnorm": 0.5}, {"clipvalue": 0.5}, {"use_ema": True}],
    ids=["plain", "clipnorm", "global_clipnorm", "clipvalue", "ema"],
)
@pytest.mark.parametrize("make", [KO.SGD, KO.Adam], ids=["sgd", "adam"])
def test_sparse_gradients_of_an_embedding_are_as_in_the_plain_optimizer(make, options):
    tables = []
    for wrap in (False, True):
        table = keras.Variable(np.ones((5, 3)), name="embeddings")
        dense = keras.Variable(np.ones((3,)), name="dense")
        optimizer = make(0.1, **options)
        if wrap:
            optimizer = discriminative(optimizer)
            optimizer.set_groups({"embedding": [table], "head": [dense]})
        for _ in range(3):
            optimizer.apply([toys.sparse(table, [1, 3]), keras.ops.ones((3,))], [table, dense])
        optimizer.finalize_variable_values([table, dense])
        tables.append(table.numpy())
    np.testing.assert_array_equal(tables[0], tables[1])
    assert np.abs(tables[1][[1, 3]] - 1).min() > 0


def test_a_constraint_is_applied_once():
    calls = []

    class Shrink(keras.constraints.Constraint):
        def __call__(self, w):
            calls.append(1)
            return w * 0.5

    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, kernel_constraint=Shrink())])
    optimizer = discriminative(KO.SGD(0.0001))
    before = toys.values(model.trainable_variables)
    optimizer.apply(
        [keras.ops.zeros(v.shape) for v in model.trainable_variables], model.trainable_variables
    )
    assert len(calls) == 1
    np.testing.assert_array_equal(0.5 * before[0], model.trainable_variables[0].numpy())
