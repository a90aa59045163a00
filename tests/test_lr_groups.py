import itertools
import math

import hypothesis.strategies as st
import pytest
from hypothesis import given

from keras_transfer.lr_groups import group_multipliers, spread_to_decay

NAMES = ["conv1", "block1", "block2", "top"]

group_names = st.lists(st.text("abcxyz_123", min_size=1), min_size=1, max_size=9, unique=True)
decays = st.floats(0.01, 1)


# --- By decay -------------------------------------------------------------------------------


def test_each_group_has_the_next_groups_rate_times_the_decay():
    multipliers = group_multipliers(NAMES, lr_decay=1 / 2.6)
    assert multipliers == pytest.approx(
        {"conv1": 2.6**-3, "block1": 2.6**-2, "block2": 2.6**-1, "top": 1.0}
    )


@given(group_names, decays)
def test_the_head_has_the_base_rate_and_ratios_are_the_decay(names, decay):
    multipliers = list(group_multipliers(names, lr_decay=decay).values())
    assert multipliers[-1] == 1.0
    assert all(0 < multiplier <= 1 for multiplier in multipliers)
    for lower, upper in itertools.pairwise(multipliers):
        assert lower == pytest.approx(upper * decay)


@given(group_names, decays, st.data())
def test_a_groups_rate_does_not_depend_on_what_else_trains(names, decay, data):
    training = data.draw(st.sets(st.sampled_from(names)))
    everything = group_multipliers(names, lr_decay=decay)
    some = group_multipliers(names, lr_decay=decay, training=training)
    assert some == {name: everything[name] for name in names if name in training}
    assert list(some) == [name for name in names if name in training]


def test_without_rates_every_group_has_the_base_rate():
    assert group_multipliers(NAMES) == dict.fromkeys(NAMES, 1.0)


# --- By pattern -----------------------------------------------------------------------------


def test_patterns_are_matched_whole_and_the_rest_keeps_the_base_rate():
    rates = {"block.*": 0.1, "top": 3.0}
    assert group_multipliers(NAMES, rates=rates) == {
        "conv1": 1.0,
        "block1": 0.1,
        "block2": 0.1,
        "top": 3.0,
    }


def test_stem_and_head_name_the_first_and_last_group():
    multipliers = group_multipliers(NAMES, rates={"stem": 0.0, "head": 2.0})
    assert multipliers == {"conv1": 0.0, "block1": 1.0, "block2": 1.0, "top": 2.0}


def test_a_group_that_is_called_head_is_meant_before_the_last_one():
    assert group_multipliers(["head", "a", "b"], rates={"head": 0.5}) == {
        "head": 0.5,
        "a": 1.0,
        "b": 1.0,
    }


def test_names_that_are_no_valid_patterns_match_themselves():
    assert group_multipliers(["a(1", "b"], rates={"a(1": 0.5})["a(1"] == 0.5


# --- Spread ---------------------------------------------------------------------------------


@given(st.floats(1, 1e9), st.integers(2, 60))
def test_the_decay_gives_the_spread(spread, n_groups):
    decay = spread_to_decay(spread, n_groups)
    multipliers = group_multipliers([str(i) for i in range(n_groups)], lr_decay=decay)
    assert multipliers[str(n_groups - 1)] / multipliers["0"] == pytest.approx(spread)


def test_known_spreads():
    assert spread_to_decay(2.6**4, 5) == pytest.approx(1 / 2.6)  # ULMFiT
    assert spread_to_decay(100, 3) == pytest.approx(0.1)  # fastai's lr_mult, three groups
    assert spread_to_decay(1, 4) == 1.0
    assert spread_to_decay(100, 1) == 1.0


# --- Bad input ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lr_decay": 0.0}, "`lr_decay` must be finite and at most 1 and above 0.*lr_decay=0"),
        ({"lr_decay": -0.4}, "`lr_decay` must be .*lr_decay=-0.4"),
        ({"lr_decay": 2.6}, "`lr_decay` must be .*at most 1.*lr_decay=2.6"),
        ({"lr_decay": math.nan}, "`lr_decay` must be finite"),
        ({"rates": {"top": -1.0}}, r"`rates\['top'\]` must be finite and at least 0"),
        ({"rates": {"top": math.nan}}, r"`rates\['top'\]` must be finite"),
        ({"rates": {"blok1": 0.1}}, "No layer group matches 'blok1'. Did you mean 'block1'"),
        ({"rates": {"block": 0.1}}, "No layer group matches 'block'.*conv1, block1, block2, top"),
        ({"rates": {"(": 0.1}}, r"'\(' is not a valid regular expression"),
        ({"rates": {"hed": 0.1}}, "Did you mean 'head'"),
        ({"rates": {"block1": 0.1, "block.*": 0.2}}, "'block1' and 'block.*' both match .*'block1"),
        ({"rates": {"top": 0.1, "head": 0.2}}, "'top' and 'head' both match .*'top'"),
        ({"rates": {"top": 0.1}, "lr_decay": 0.5}, "`lr_decay` or `rates`, not both"),
        ({"training": ["blck1"]}, "No layer group matches 'blck1'. Did you mean 'block1'"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        group_multipliers(NAMES, **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rates": 0.1}, "`rates` must map names or patterns.*rates=0.1"),
        ({"training": "top"}, "`training` must be a collection.*training='top'"),
        ({"lr_decay": "0.4"}, "`lr_decay` must be a number.*lr_decay='0.4'"),
    ],
)
def test_arguments_of_the_wrong_type_are_refused(arguments, message):
    with pytest.raises(TypeError, match=message):
        group_multipliers(NAMES, **arguments)


def test_names_must_exist_and_differ():
    with pytest.raises(ValueError, match="names no layer group"):
        group_multipliers([])
    with pytest.raises(ValueError, match="Received twice: 'a'"):
        group_multipliers(["a", "b", "a"])


@pytest.mark.parametrize(
    ("spread", "n_groups", "message"),
    [
        (0.5, 3, "`spread` must be finite and at least 1"),
        (math.inf, 3, "`spread` must be finite"),
        (10, 0, "`n_groups` must be at least 1"),
    ],
)
def test_bad_spreads_are_refused(spread, n_groups, message):
    with pytest.raises(ValueError, match=message):
        spread_to_decay(spread, n_groups)
