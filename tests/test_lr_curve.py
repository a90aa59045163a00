import dataclasses
import json
import math

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra import numpy as hnp

from keras_transfer.lr_curve import LRCurve
from keras_transfer.lr_rules import RULES, has_diverged, minimum, slide, smooth, steep, valley

RATES = np.geomspace(1e-7, 10, 100)


def gradient_descent(*, largest_curvature, noise=0.0, condition=100.0, num_steps=100, seed=0):
    """An LR range test of gradient descent on a quadratic; it diverges beyond 2 / curvature."""
    rng = np.random.default_rng(seed)
    curvatures = np.geomspace(largest_curvature / condition, largest_curvature, 20)
    weights = rng.normal(size=20) / np.sqrt(curvatures)
    rates, losses = np.geomspace(1e-7, 10, num_steps), []
    for rate in rates:
        losses.append(0.5 + np.sum(curvatures * weights**2) / 2 + noise * rng.normal())
        if has_diverged(losses, smoothing=0.9):
            break
        gradient = curvatures * weights + noise * rng.normal(size=20)
        weights = weights - rate * gradient
    diverged = len(losses) < num_steps
    return LRCurve(rates[: len(losses)], losses, diverged=diverged)


def fall_and_rise(fall_at=1e-3, rise_at=1e-1, noise=0.0, seed=0):
    """A fall from 2 to 1, steepest at `fall_at`, and a rise of 1 at `rise_at`."""
    rng = np.random.default_rng(seed)
    falling = 1 / (1 + (RATES / fall_at))
    losses = 1 + falling + (RATES / rise_at) ** 2 + noise * rng.normal(size=len(RATES))
    smoothing = 0.9 if noise else 0.0
    steps = range(1, len(RATES) + 1)
    stop = next((n for n in steps if has_diverged(losses[:n], smoothing)), len(RATES))
    diverged = stop < len(RATES)
    return LRCurve(RATES[:stop], losses[:stop], smoothing=smoothing, diverged=diverged)


# --- Smoothing and divergence ---------------------------------------------------------------


def test_smoothing_is_an_average_with_weights_that_shrink_by_the_same_factor():
    losses = np.random.default_rng(0).normal(size=30)
    for i, average in enumerate(smooth(losses, 0.9)):
        weights = 0.9 ** np.arange(i, -1, -1)
        assert average == pytest.approx(np.average(losses[: i + 1], weights=weights))


@given(hnp.arrays(float, st.integers(1, 50), elements=st.floats(-1e6, 1e6)), st.floats(0, 0.99))
def test_smoothed_losses_start_at_the_first_and_stay_among_the_losses(losses, smoothing):
    averages = smooth(losses, smoothing)
    assert averages[0] == pytest.approx(losses[0])
    margin = 1e-9 * (1 + np.abs(losses).max())
    assert (averages >= losses.min() - margin).all()
    assert (averages <= losses.max() + margin).all()


@pytest.mark.parametrize(
    ("losses", "diverged"),
    [
        ([2.0, 1.0, 3.9], False),
        ([2.0, 1.0, 4.1], True),
        ([2.0, 1.0, 4.1, 3.0], False),
        ([2.0, math.nan], True),
        ([2.0, math.inf], True),
        ([-1.0, -1.0], False),
        ([-1.0, 1.9], False),
        ([-1.0, 2.1], True),
    ],
)
def test_a_loss_four_times_its_best_or_not_finite_has_diverged(losses, diverged):
    assert has_diverged(losses, smoothing=0.0) is diverged


# --- Rules on curves with a known answer ----------------------------------------------------


@pytest.mark.parametrize("largest_curvature", [1.0, 10.0, 1000.0])
def test_gradient_descent_diverges_beyond_two_over_the_curvature(largest_curvature):
    # Noise keeps the steepest direction alive; without it, its weight is 0 by then.
    curve = gradient_descent(largest_curvature=largest_curvature, noise=0.1, num_steps=1000)
    assert curve.diverged
    # The rate grows while the weights do, so the loss is seen to grow a little later.
    assert 1 < curve.learning_rates[-1] / (2 / largest_curvature) < 3


@pytest.mark.parametrize("largest_curvature", [1.0, 10.0, 100.0, 1000.0])
@pytest.mark.parametrize("condition", [1.0, 100.0])
@pytest.mark.parametrize("noise", [0.0, 0.1, 0.3])
@pytest.mark.parametrize("seed", range(3))
def test_the_suggestion_is_a_rate_at_which_gradient_descent_works(
    largest_curvature, condition, noise, seed
):
    curve = gradient_descent(
        largest_curvature=largest_curvature, condition=condition, noise=noise, seed=seed
    )
    assert 0.01 <= curve.suggestion / (2 / largest_curvature) <= 1


def test_the_suggestion_moves_with_the_curvature():
    one, thousand = (gradient_descent(largest_curvature=c).suggestion for c in (1.0, 1000.0))
    assert one / thousand == pytest.approx(1000, rel=0.3)


@pytest.mark.parametrize("fall_at", [1e-4, 1e-3])
def test_steep_finds_where_the_loss_falls_fastest(fall_at):
    curve = fall_and_rise(fall_at=fall_at, rise_at=1.0)
    assert curve.suggest("steep") == pytest.approx(fall_at, rel=0.2)


@pytest.mark.parametrize("rise_at", [0.1, 1.0])
def test_minimum_is_a_tenth_of_the_rate_with_the_lowest_loss(rise_at):
    curve = fall_and_rise(rise_at=rise_at)
    # d/dr of fall_at / r + (r / rise_at)**2 is zero there.
    lowest = (1e-3 * rise_at**2 / 2) ** (1 / 3)
    assert curve.suggest("minimum") == pytest.approx(lowest / 10, rel=0.2)


@pytest.mark.parametrize("fall_at", [1e-4, 1e-3])
def test_valley_lies_inside_the_fall(fall_at):
    curve = fall_and_rise(fall_at=fall_at, rise_at=1.0)
    assert fall_at / 10 < curve.suggest("valley") < 10 * fall_at


def test_slide_stops_one_window_before_the_rise():
    losses = np.linspace(2, 1, 100)
    losses[80:] += 0.1 * np.arange(1, 21) ** 2
    # The loss is as steep at both ends of a window of 15 once its right end is at 78: the
    # slope at 79 sees the rise already.
    assert slide(RATES, losses) == RATES[78 - 15]


@pytest.mark.parametrize("rise_at", [0.1, 1.0])
def test_slide_stays_below_the_rise(rise_at):
    assert 1e-5 < fall_and_rise(rise_at=rise_at).suggest("slide") < rise_at


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("rule", sorted(RULES))
def test_noise_moves_a_suggestion_by_less_than_a_factor_of_thirty(rule, seed):
    quiet = fall_and_rise().suggest(rule)
    noisy = fall_and_rise(noise=0.05, seed=seed).suggest(rule)
    assert 1 / 30 < noisy / quiet < 30


@given(st.floats(1e-3, 1e3), st.floats(-100, 100), st.sampled_from(sorted(RULES)))
def test_rules_do_not_depend_on_the_scale_of_the_loss(scale, offset, rule):
    losses = np.asarray(fall_and_rise().losses)[10:70]
    rates = RATES[10:70]
    moved = RULES[rule](rates, losses * scale + offset)
    assert moved == pytest.approx(RULES[rule](rates, losses), rel=0.3)


def test_a_plateau_of_chance_falls_does_not_pull_the_valley_down():
    rng = np.random.default_rng(3)
    plateau = 2 + 0.001 * rng.normal(size=60)
    rates = np.geomspace(1e-6, 1e-1, 80)
    losses = np.concatenate([plateau, np.linspace(1.9, 1.0, 20)])
    assert rates[60] <= valley(rates, losses) <= rates[-1]


def test_rules_return_plain_floats():
    rates, losses = RATES[10:70], np.asarray(fall_and_rise().losses)[10:70]
    for rule in (valley, steep, minimum, slide):
        assert type(rule(rates, losses)) is float


def test_a_function_can_be_the_rule():
    assert fall_and_rise().suggest(lambda rates, losses: rates[0] + 0 * losses[0]) == RATES[7]


# --- Curves that do not tell ----------------------------------------------------------------


@pytest.mark.parametrize("num_steps", [100, 300])
@pytest.mark.parametrize("smoothing", [0.0, 0.9, 0.95])
def test_noise_alone_gives_no_suggestion(num_steps, smoothing):
    rates = np.geomspace(1e-7, 10, num_steps)
    refused = 0
    for seed in range(50):
        losses = 2 + 0.1 * np.random.default_rng(seed).normal(size=num_steps)
        curve = LRCurve(rates, losses, smoothing=smoothing)
        refused += "no suggestion: The loss" in str(curve)
    assert refused >= 48


def test_noise_alone_asks_for_larger_rates_steps_or_batches():
    losses = 2 + 0.1 * np.random.default_rng(0).normal(size=100)
    with pytest.raises(ValueError, match=r"no more than its noise .* Raise `max_lr`, or take more"):
        LRCurve(RATES, losses).suggest()


@pytest.mark.parametrize("rule", sorted(RULES))
def test_a_flat_curve_asks_for_larger_rates(rule):
    with pytest.raises(ValueError, match=r"up to a learning rate of 1.0e\+01. Raise `max_lr`"):
        LRCurve(RATES, np.full(100, 2.3)).suggest(rule)


@pytest.mark.parametrize("rule", sorted(RULES))
def test_a_curve_that_only_rises_asks_for_smaller_rates(rule):
    with pytest.raises(
        ValueError, match=r"rises without falling .* Lower `min_lr` \(now 1.0e-07\)"
    ):
        LRCurve(RATES, 1 + np.linspace(0, 1, 100)).suggest(rule)


def test_a_curve_that_diverges_at_once_asks_for_smaller_rates():
    with pytest.raises(ValueError, match=r"12 points before the loss diverged, .* Lower `min_lr`"):
        LRCurve(RATES[:12], np.linspace(1, 9, 12), diverged=True).suggest()
    losses = np.append(np.full(12, 1.0), math.nan)
    with pytest.raises(ValueError, match=r"12 points before the loss diverged, .* Lower `min_lr`"):
        LRCurve(RATES[:13], losses).suggest()


def test_too_few_steps_ask_for_more():
    with pytest.raises(ValueError, match=r"8 points before its end.* Take more steps"):
        LRCurve(RATES[:8], np.linspace(2, 1, 8)).suggest()


@pytest.mark.parametrize("rule", ["minimum", "slide"])
def test_rules_that_need_the_rise_say_so_where_there_is_none(rule):
    falling = LRCurve(RATES, 2 - np.linspace(0, 1, 100) ** 2)
    with pytest.raises(ValueError, match=rf"rule '{rule}' needs to see it rise. Raise `max_lr`"):
        falling.suggest(rule)
    assert RATES[0] < falling.suggest("valley") < RATES[-1]


def test_what_follows_a_loss_that_is_not_finite_is_left_out():
    curve = gradient_descent(largest_curvature=10.0)
    longer = LRCurve(
        [*curve.learning_rates, 11.0, 12.0], [*curve.losses, math.inf, 0.0], diverged=True
    )
    assert longer.smoothed_losses == curve.smoothed_losses
    assert longer.suggestion == curve.suggestion


def test_an_unknown_rule_names_the_nearest():
    with pytest.raises(ValueError, match="Did you mean 'valley'"):
        fall_and_rise().suggest("vally")


# --- The value itself -----------------------------------------------------------------------


@given(
    st.lists(st.floats(1e-9, 1e3), min_size=1, max_size=30, unique=True).map(sorted),
    st.floats(0, 0.99),
    st.sampled_from([None, "top"]),
    st.data(),
)
def test_curves_round_trip_through_json_whatever_their_losses(rates, smoothing, stage, data):
    losses = data.draw(st.lists(st.floats(), min_size=len(rates), max_size=len(rates)))
    curve = LRCurve(rates, losses, smoothing=smoothing, diverged=True, stage=stage)
    text = curve.to_json()
    json.loads(text, parse_constant=pytest.fail)  # NaN and Infinity are no JSON
    copy = LRCurve.from_json(text)
    assert copy == curve
    assert hash(copy) == hash(curve)
    np.testing.assert_array_equal(copy.losses, curve.losses)


def test_curves_that_differ_are_not_equal():
    curve = fall_and_rise()
    assert curve != dataclasses.replace(curve, stage="top")
    assert curve != "curve"


def test_printing_shows_a_short_table_and_the_suggestion():
    curve = gradient_descent(largest_curvature=10.0)
    lines = str(curve).splitlines()
    assert lines[0].startswith(f"LR curve: {len(curve.losses)} steps, 1.0e-07 to ")
    assert lines[0].endswith("stopped when the loss diverged")
    assert len(lines) == 12
    assert lines[-1] == f"suggestion (valley): {curve.suggestion:.1e}"


def test_printing_a_curve_without_a_suggestion_says_why():
    text = str(LRCurve(RATES[:5], [1, 2, 3, 4, math.nan], stage="top"))
    assert "in stage 'top'" in text
    assert "no suggestion: The LR curve has 4 points" in text


@pytest.mark.parametrize(
    ("rates", "losses", "kwargs", "message"),
    [
        ([1e-3, 1e-2], [1.0], {}, "Received: 2 learning rates, 1 losses"),
        ([], [], {}, "needs at least one point"),
        ([1e-2, 1e-3], [1.0, 1.0], {}, "above 0, finite and growing"),
        ([0.0, 1e-3], [1.0, 1.0], {}, "above 0, finite and growing"),
        ([1e-3, math.nan], [1.0, 1.0], {}, "above 0, finite and growing"),
        ([1e-3], [1.0], {"smoothing": 1.0}, "`smoothing` must be .*below 1"),
    ],
)
def test_bad_curves_are_refused(rates, losses, kwargs, message):
    with pytest.raises(ValueError, match=message):
        LRCurve(rates, losses, **kwargs)


def test_json_with_an_unknown_key_names_the_nearest():
    config = {**json.loads(fall_and_rise().to_json()), "smothing": 0.5}
    with pytest.raises(ValueError, match=r"no argument 'smothing'. Did you mean 'smoothing'"):
        LRCurve.from_json(json.dumps(config))
    with pytest.raises(TypeError, match="is a JSON object"):
        LRCurve.from_json("[1]")


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("{", ValueError, "The LR curve is not valid JSON"),
        ('{"losses": [1]}', ValueError, "needs `learning_rates`"),
        ('{"learning_rates": 3, "losses": [1]}', TypeError, "`learning_rates` must be a list of"),
        ('{"learning_rates": ["a"], "losses": [1]}', TypeError, "`learning_rates` must be a list"),
        ('{"learning_rates": [1], "losses": [null]}', TypeError, "`losses` must be a list of"),
        ('{"learning_rates": [1], "losses": [1], "diverged": "no"}', TypeError, "`diverged` must"),
        ('{"learning_rates": [1], "losses": [1], "stage": 5}', TypeError, "`stage` must be a str"),
    ],
)
def test_json_that_is_no_curve_is_refused_in_words(text, error, message):
    with pytest.raises(error, match=message):
        LRCurve.from_json(text)
