import keras_tuner
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_transfer.lr_curve import LRCurve
from keras_transfer.tuning import SearchSpace
from keras_transfer.tuning._plans import stage_lengths

EVERYTHING = {
    "depth": (1, "all"),
    "num_stages": (1, 4),
    "schedule": ["constant", "one_cycle"],
    "warmup_fraction": (0.1, 0.4),
    "weight_decay": (1e-5, 1e-2),
    "head_dropout": (0.0, 0.5),
    "batch_norm": ["inference", "freeze"],
}


def registered(space, num_groups=6):
    """Hyperparameters in which every conditional scope has been active once."""
    hp = keras_tuner.HyperParameters()
    space.sample(hp, num_groups)
    return hp


def drawn(space, seed, num_groups=6):
    """A random trial's values, drawn as KerasTuner's oracles draw them."""
    known = registered(space, num_groups)
    hp = keras_tuner.HyperParameters()
    for one in known.space:
        hp.merge([one])
        if hp.is_active(one):
            hp.values[one.name] = one.random_sample(seed)
            seed += 1
    return space.sample(hp, num_groups)


# --- Lengths ----------------------------------------------------------------------------------


@given(
    st.integers(1, 60),
    st.lists(st.none() | st.floats(0.01, 0.99), max_size=5),
)
def test_stages_fill_the_budget_and_the_last_always_runs(epochs, shares):
    lengths = stage_lengths(epochs, len(shares) + 1, shares)
    assert sum(lengths) == epochs
    assert len(lengths) == len(shares) + 1
    assert lengths[-1] >= 1
    if epochs > len(shares):
        assert min(lengths) >= 1


def test_lengths_are_shares_of_what_is_left():
    assert stage_lengths(20, 3, [0.5, 0.2]) == [10, 2, 8]
    assert stage_lengths(9, 3, [None, None]) == [3, 3, 3]
    # Two epochs for three stages: the deepest two run.
    assert stage_lengths(2, 3, [0.5, 0.5]) == [0, 1, 1]


# --- Plans ------------------------------------------------------------------------------------


@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(1, 8))
@settings(max_examples=60)
def test_every_trial_has_a_plan_that_unfreezes_from_the_head_down(seed, epochs, num_groups):
    space = SearchSpace(**EVERYTHING)
    values = drawn(space, seed, num_groups)
    plan = space.plan(values, num_groups, epochs)
    depths = [num_groups if s.depth == "all" else s.depth for s in plan.stages]
    assert plan.total_epochs == epochs
    assert depths == sorted(set(depths))
    assert depths[-1] == values["depth"]
    for stage in plan.stages:
        assert 1e-4 * 0.02**3 <= stage.peak_lr <= 1e-1
        assert 0.2 <= stage.lr_decay <= 1


def test_a_later_stage_has_a_multiple_of_the_rate_before_it():
    space = SearchSpace(num_stages=3)
    values = {
        "head_lr": 0.1, "num_stages": 3, "depth": 5,
        "stage_2_lr_ratio": 0.5, "stage_3_lr_ratio": 0.1,
    }  # fmt: skip
    plan = space.plan(values, num_groups=5, epochs=6)
    assert [s.name for s in plan.stages] == ["probe", "top_3", "all"]
    np.testing.assert_allclose([s.peak_lr for s in plan.stages], [0.1, 0.05, 0.005])


def test_spread_is_between_head_and_stem_whatever_the_number_of_groups():
    space = SearchSpace(lr_spread=(1.0, 1000.0))
    assert "lr_decay" not in drawn(space, 0)
    for num_groups in (2, 5, 9):
        (stage, *_) = space.plan({"lr_spread": 100.0}, num_groups).stages
        assert stage.lr_decay ** (num_groups - 1) == pytest.approx(1 / 100)


def test_what_matters_only_beside_another_value_is_conditional():
    hp = registered(SearchSpace(**EVERYTHING))
    where = {one.name: [(c.name, c.values) for c in one.conditions] for one in hp.space}
    assert where["head_lr"] == []
    assert where["num_stages"] == [("depth", [2, 3, 4, 5, 6])]
    assert where["stage_3_lr_ratio"] == [*where["num_stages"], ("num_stages", [3, 4])]
    assert where["stage_2_share"] == where["stage_3_lr_ratio"]
    assert where["warmup_fraction"] == [("schedule", ["one_cycle"])]
    assert hp.space[0].sampling == "log"


def test_a_part_that_is_off_or_fixed_is_no_hyperparameter():
    hp = registered(SearchSpace(lr_decay=0.5, stage_lr_ratio=None, stage_share=[0.5]))
    assert [one.name for one in hp.space] == ["head_lr"]
    plan = SearchSpace(lr_decay=0.5).plan({"lr_decay": 0.5, "head_lr": 0.1}, 3)
    assert plan.stages[0].lr_decay == 0.5


def test_rates_lie_around_what_the_curve_suggests():
    rates = np.geomspace(1e-5, 1, 100)
    curve = LRCurve(rates, 2.0 - rates / (rates + 1e-2) + (rates / 0.3) ** 4)
    space = SearchSpace.from_lr_curve(curve, width=4, depth=1, num_stages=1)
    low, high = space.head_lr
    assert high / low == pytest.approx(16)
    assert (low * high) ** 0.5 == pytest.approx(curve.suggestion)
    with pytest.raises(ValueError, match="`head_lr` follows from the curve"):
        SearchSpace.from_lr_curve(curve, head_lr=(1e-3, 1e-2))


# --- Bad input --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"head_lr": (1e-1, 1e-4)}, r"`head_lr` is upside down.*Write \(0.0001, 0.1\)"),
        ({"head_lr": (0.1, 0.1)}, "holds one value"),
        ({"head_lr": (0.1, 0.2, 0.3)}, "a list is a choice"),
        ({"head_lr": (0.0, 0.1)}, "above 0"),
        ({"weight_decay": (0.0, 0.1)}, "log scale, so it must begin above 0"),
        ({"lr_decay": (0.5, 1.5)}, "at most 1"),
        ({"stage_share": (0.0, 0.5)}, "above 0"),
        ({"head_dropout": [0.1, 1.0]}, "below 1"),
        ({"schedule": ["one_cycles"]}, "Did you mean 'one_cycle'"),
        ({"batch_norm": ["frozen"]}, "Did you mean 'freeze'"),
        ({"depth": "alll"}, "Did you mean 'all'"),
        ({"depth": (5, 2)}, "upside down"),
        ({"num_stages": []}, "empty list"),
        ({"num_stages": None}, "`num_stages` cannot be None"),
        ({"epochs": 0}, "at least 1"),
        ({"lr_decay": (0.5, 0.9), "lr_spread": 10.0}, "in two ways"),
        ({"head_lr": None, "stage_lr_ratio": (0.1, 0.5)}, "leaves that to the optimizer"),
        ({"warmup_fraction": 0.1}, "is the rise of a schedule"),
        (
            {"head_lr": 0.1, "lr_decay": None, "stage_lr_ratio": None, "stage_share": None},
            "search space is empty",
        ),
        # The ratio is on by default, and gives way where there is no rate to multiply.
        ({"head_lr": None, "lr_decay": None, "stage_share": None}, "search space is empty"),
        (
            {"head_lr": 0.1, "lr_decay": None, "num_stages": 1},
            "stage_lr_ratio, stage_share would be tuned, and make no difference with depth='all'",
        ),
        ({"head_lr": 0.1, "depth": 1}, "lr_decay, stage_lr_ratio, stage_share would be tuned"),
    ],
)
def test_a_space_that_makes_no_sense_is_an_error(parts, message):
    with pytest.raises(ValueError, match=message):
        SearchSpace(**parts)


def test_a_range_of_what_has_no_order_is_an_error():
    with pytest.raises(TypeError, match=r"has no order.*schedule=\['constant', 'one_cycle'\]"):
        SearchSpace(schedule=("constant", "one_cycle"))
    with pytest.raises(TypeError, match="must be a whole number"):
        SearchSpace(num_stages=(1.0, 3.0))


def test_a_depth_beyond_the_model_is_an_error():
    with pytest.raises(ValueError, match="depth=9, and the model has 4 layer groups"):
        SearchSpace(depth=(1, 9)).sample(keras_tuner.HyperParameters(), 4)
