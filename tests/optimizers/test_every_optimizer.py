"""One table over everything that `keras.optimizers` offers."""

import dataclasses

import keras
import numpy as np
import pytest

from keras_transfer.optimizers import DiscriminativeOptimizer, discriminative, find_discriminative
from tests.optimizers import toys


@dataclasses.dataclass(frozen=True)
class Row:
    make: object
    rate_linear: bool = True  # a tenth of the rate is a tenth of the first step
    zero_rate: bool = True  # a rate of 0 leaves every bit in place


KO = keras.optimizers
TABLE = {
    "Adadelta": Row(lambda: KO.Adadelta(0.5)),
    "Adafactor": Row(lambda: KO.Adafactor(1e-2)),
    "Adagrad": Row(lambda: KO.Adagrad(1e-2)),
    "Adam": Row(lambda: KO.Adam(1e-2, amsgrad=True)),
    "AdamW": Row(lambda: KO.AdamW(1e-2, weight_decay=0.1)),
    "Adamax": Row(lambda: KO.Adamax(1e-2)),
    # The rate is inside a power; a rate of 0 would be a division by it.
    "Ftrl": Row(lambda: KO.Ftrl(1e-2), rate_linear=False, zero_rate=False),
    "Lamb": Row(lambda: KO.Lamb(1e-2)),
    "Lion": Row(lambda: KO.Lion(1e-3, weight_decay=0.1)),
    "Muon": Row(lambda: KO.Muon(1e-2)),
    "Nadam": Row(lambda: KO.Nadam(1e-2)),
    "RMSprop": Row(lambda: KO.RMSprop(1e-3, momentum=0.9, centered=True)),
    "SGD": Row(lambda: KO.SGD(1e-2, momentum=0.9, nesterov=True)),
    # A rate of 0 keeps the two sequences, but their mixture is computed anew each step.
    "ScheduleFreeAdamW": Row(
        lambda: KO.ScheduleFreeAdamW(1e-2, weight_decay=0.1, warmup_steps=0), zero_rate=False
    ),
}
REFUSED = {"MultiOptimizer": "no learning rate of its own"}
AROUND = {"LossScaleOptimizer"}
NO_OPTIMIZER = {"Optimizer"}

each = pytest.mark.parametrize("row", TABLE.values(), ids=TABLE)
# One of each kind: with one state or two, factored, by matrices, dividing by its rate, averaging.
usually = pytest.mark.usually("Adafactor", "Adam", "Ftrl", "Muon", "SGD", "ScheduleFreeAdamW")


def set_up(row, model, training):
    optimizer = discriminative(row.make())
    optimizer.set_groups(toys.group_variables(model))
    optimizer.build(training)
    return optimizer


def test_the_table_covers_keras_optimizers():
    classes = {
        name
        for name, value in vars(keras.optimizers).items()
        if isinstance(value, type) and issubclass(value, keras.optimizers.Optimizer)
    }
    assert classes == {*TABLE, *REFUSED, *AROUND, *NO_OPTIMIZER}


@each
def test_without_groups_it_is_the_plain_optimizer_bit_by_bit(row):
    data = toys.make_data(32)
    model, optimizer = toys.make_model(), row.make()
    if isinstance(optimizer, KO.ScheduleFreeAdamW):
        # Built inside the traced step, as `fit` does, Keras's own never copies the start values
        # into its momentum, and all weights jump towards zero.
        optimizer.build(model.trainable_variables)
    # Eagerly: tracing takes a second for each, and test_options.py has its modes.
    options = {"epochs": 1, "run_eagerly": True}
    plain = toys.fit(model, optimizer, data, **options)
    wrapped = toys.fit(toys.make_model(), discriminative(row.make()), data, **options)
    assert toys.distance(plain, wrapped) == 0.0


@usually
@each
def test_a_frozen_group_is_bit_identical_and_moves_once_unfrozen(row):
    model = toys.make_model()
    groups = toys.group_variables(model)
    optimizer = set_up(row, model, groups["head"])
    before = {name: toys.values(variables) for name, variables in groups.items()}
    toys.run(optimizer, groups["head"], 5)
    for name in ("stem", "body"):
        assert toys.distance(before[name], toys.values(groups[name])) == 0.0
    assert toys.distance(before["head"], toys.values(groups["head"])) > 0.0
    optimizer.build([*groups["body"], *groups["head"]])
    toys.run(optimizer, [*groups["body"], *groups["head"]], 5, first=5)
    assert toys.distance(before["stem"], toys.values(groups["stem"])) == 0.0
    assert toys.distance(before["body"], toys.values(groups["body"])) > 0.0
    assert optimizer.group_steps == {"stem": 0, "body": 5, "head": 10}


@usually
@each
def test_a_multiplier_scales_the_first_step(row):
    moves = {}
    for multiplier in (1.0, 0.1):
        model = toys.make_model()
        groups = toys.group_variables(model)
        optimizer = set_up(row, model, model.trainable_variables)
        optimizer.set_multipliers({"body": multiplier})
        before = {name: toys.values(variables) for name, variables in groups.items()}
        toys.run(optimizer, model.trainable_variables, 1)
        moves[multiplier] = {
            name: [b - a for a, b in zip(before[name], toys.values(groups[name]), strict=True)]
            for name in groups
        }
    assert toys.distance(moves[1.0]["head"], moves[0.1]["head"]) == 0.0
    for full, tenth in zip(moves[1.0]["body"], moves[0.1]["body"], strict=True):
        assert np.abs(full).max() > 1e-5
        if row.rate_linear:
            np.testing.assert_allclose(tenth, 0.1 * full, rtol=1e-3, atol=2e-7)
        else:
            assert np.abs(tenth).max() < np.abs(full).max()


@usually
@each
def test_a_group_with_multiplier_zero_stays_where_it_is(row):
    model = toys.make_model()
    groups = toys.group_variables(model)
    optimizer = set_up(row, model, model.trainable_variables)
    if isinstance(row.make(), keras.optimizers.Ftrl):
        with pytest.raises(ValueError, match="divides by its learning rate"):
            optimizer.set_multipliers({"body": 0})
        return
    optimizer.set_multipliers({"body": 0})
    before = toys.values(groups["body"])
    toys.run(optimizer, model.trainable_variables, 5)
    assert toys.distance(before, toys.values(groups["body"])) <= (0.0 if row.zero_rate else 1e-6)
    assert optimizer.group_steps["body"] == 5


@usually
@each
def test_a_late_group_trains_like_a_fresh_one_and_the_others_as_if_alone(row):
    late = toys.make_model()
    groups = toys.group_variables(late)
    optimizer = set_up(row, late, groups["head"])
    toys.run(optimizer, groups["head"], 6)
    both = [*groups["body"], *groups["head"]]
    optimizer.build(both)
    toys.run(optimizer, both, 4, first=6)

    fresh = toys.make_model()
    body = toys.group_variables(fresh)["body"]
    toys.run(set_up(row, fresh, body), body, 4, first=6)
    assert toys.distance(toys.values(groups["body"]), toys.values(body)) == 0.0

    alone = toys.make_model()
    head = toys.group_variables(alone)["head"]
    toys.run(set_up(row, alone, head), head, 10)
    assert toys.distance(toys.values(groups["head"]), toys.values(head)) == 0.0


@usually
@each
def test_save_and_load_reproduce_the_next_steps_exactly(row):
    save_and_load(row, steps=4)


def test_save_and_load_reproduce_the_next_20_steps_exactly():
    save_and_load(TABLE["AdamW"], steps=20)


def save_and_load(row, steps):
    model = toys.make_model()
    groups = toys.group_variables(model)
    optimizer = set_up(row, model, groups["head"])
    toys.run(optimizer, groups["head"], 2)
    optimizer.set_multipliers({"body": 0.3, "head": 0.9})
    optimizer.learning_rate = 2e-3
    optimizer.build([*groups["body"], *groups["head"]])
    both = model.trainable_variables[2:]
    toys.run(optimizer, both, 3, first=2)
    store, weights = toys.save(optimizer), model.get_weights()
    toys.run(optimizer, both, steps, first=5)

    again = toys.make_model(seed=1)
    again.set_weights(weights)
    restored = DiscriminativeOptimizer.from_config(optimizer.get_config())
    restored.set_groups(toys.group_variables(again))
    restored.build(again.trainable_variables[2:])
    restored.load_own_variables(store)
    assert restored.group_steps == {"stem": 0, "body": 3, "head": 5}
    toys.run(restored, again.trainable_variables[2:], steps, first=5)
    assert toys.distance(model.get_weights(), again.get_weights()) == 0.0
    assert restored.group_learning_rates() == optimizer.group_learning_rates()


@usually
@each
def test_taking_over_and_giving_back_continue_bit_by_bit(row):
    kept = toys.make_model()
    plain = row.make()
    toys.run(plain, kept.trainable_variables, 2)
    weights = kept.get_weights()

    other = toys.make_model(seed=1)
    other.set_weights(weights)
    original = row.make()
    original.build(other.trainable_variables)
    for own, value in zip(original.variables, plain.variables, strict=True):
        own.assign(value)

    toys.run(plain, kept.trainable_variables, 4, first=2)
    taken = DiscriminativeOptimizer.take_over(original)
    taken.set_groups(toys.group_variables(other))
    toys.run(taken, other.trainable_variables, 2, first=2)
    assert taken.group_steps == dict.fromkeys(toys.GROUPS, 4)
    back = DiscriminativeOptimizer.give_back(taken)
    assert type(back) is type(plain)
    toys.run(back, other.trainable_variables, 2, first=4)
    assert toys.distance(kept.get_weights(), other.get_weights()) == 0.0
    assert int(back.iterations.numpy()) == 6
    assert toys.distance(toys.values(plain.variables), toys.values(back.variables)) == 0.0


def test_multi_optimizer_is_refused_by_name():
    several = KO.MultiOptimizer(KO.OptimizerMap(default_optimizer=KO.SGD()))
    with pytest.raises(ValueError, match=REFUSED["MultiOptimizer"]):
        discriminative(several)


def test_loss_scale_optimizer_goes_around():
    around = KO.LossScaleOptimizer(KO.Adam())
    assert discriminative(around) is around
    assert find_discriminative(around) is around.inner_optimizer
    assert isinstance(around.inner_optimizer, DiscriminativeOptimizer)
