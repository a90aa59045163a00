import math
import subprocess
import sys

import hypothesis.strategies as st
import pytest
from hypothesis import assume, given

from keras_transfer.schedules import functions
from keras_transfer.schedules.functions import (
    constant,
    cosine,
    one_cycle,
    slanted_triangular,
    warmup_cosine,
)

RISING = [one_cycle, slanted_triangular, warmup_cosine]

lengths = st.integers(1, 400)
peaks = st.floats(1e-8, 10)
fractions = st.floats(0.02, 0.98)


def whole(schedule, total_steps, **kwargs):
    """Every value, with the one at `total_steps` and one after the end."""
    return [schedule(t, total_steps=total_steps, **kwargs) for t in range(total_steps + 2)]


# --- Published formulas ---------------------------------------------------------------------


@pytest.mark.parametrize(("total_steps", "cut_frac"), [(100, 0.1), (1000, 0.25), (40, 0.05)])
def test_slanted_triangular_is_equation_3_of_the_paper(total_steps, cut_frac):
    ratio, lr_max = 32, 0.01
    cut = math.floor(total_steps * cut_frac)
    for t in range(total_steps):
        p = t / cut if t < cut else 1 - (t - cut) / (cut * (1 / cut_frac - 1))
        published = lr_max * (1 + p * (ratio - 1)) / ratio
        ours = slanted_triangular(
            t, total_steps=total_steps, peak_lr=lr_max, warmup_fraction=cut_frac, ratio=ratio
        )
        assert ours == pytest.approx(published, abs=1e-9)


def test_where_the_cut_is_no_whole_step_the_paper_leaves_its_band_and_we_do_not():
    total_steps, cut_frac, ratio = 19, 0.1, 32
    cut = math.floor(total_steps * cut_frac)
    p = 1 - (total_steps - 1 - cut) / (cut * (1 / cut_frac - 1))
    assert p < 0  # the last step of the published formula, below peak_lr / ratio
    assert min(whole(slanted_triangular, total_steps, peak_lr=1.0)) == 1 / ratio


@pytest.mark.parametrize(("total_steps", "pct_start"), [(100, 0.25), (1000, 0.3), (8, 0.5)])
def test_one_cycle_is_fastais(total_steps, pct_start):
    lr_max, div, div_final = 0.004, 25.0, 1e5

    def sched_cos(start, end, pos):
        return start + (1 + math.cos(math.pi * (1 - pos))) * (end - start) / 2

    for t in range(total_steps):
        pos = t / total_steps
        if pos < pct_start:
            published = sched_cos(lr_max / div, lr_max, pos / pct_start)
        else:
            published = sched_cos(lr_max, lr_max / div_final, (pos - pct_start) / (1 - pct_start))
        ours = one_cycle(t, total_steps=total_steps, peak_lr=lr_max, warmup_fraction=pct_start)
        assert ours == pytest.approx(published, abs=1e-9)


@pytest.mark.parametrize(("total_steps", "pct_start"), [(100, 0.25), (1000, 0.3)])
def test_one_cycle_is_torchs_one_step_later(total_steps, pct_start):
    # OneCycleLR peaks at step pct_start * total_steps - 1 and ends at total_steps - 1.
    lr_max, div_factor, final_div_factor = 0.004, 25.0, 1e4
    initial_lr = lr_max / div_factor
    min_lr = initial_lr / final_div_factor

    def cos_anneal(start, end, pct):
        return end + (start - end) / 2.0 * (math.cos(math.pi * pct) + 1)

    top, last = pct_start * total_steps - 1, total_steps - 1
    for t in range(round(top), total_steps):
        published = cos_anneal(lr_max, min_lr, (t - top) / (last - top))
        ours = one_cycle(
            t + 1,
            total_steps=total_steps,
            peak_lr=lr_max,
            warmup_fraction=pct_start,
            start_ratio=div_factor,
            final_ratio=div_factor * final_div_factor,
        )
        assert ours == pytest.approx(published, abs=1e-9)


@pytest.mark.parametrize("final_fraction", [0.0, 0.1])
def test_cosine_is_the_papers(final_fraction):
    lr_max, lr_min, total = 0.05, 0.05 * final_fraction, 90
    for t in range(total + 1):
        published = lr_min + (lr_max - lr_min) * (1 + math.cos(math.pi * t / total)) / 2
        ours = cosine(t, total_steps=total, peak_lr=lr_max, final_fraction=final_fraction)
        assert ours == pytest.approx(published, abs=1e-9)


def test_warmup_cosine_is_linear_then_cosine():
    lr_max, total, warmup = 0.05, 90, 9
    for t in range(total + 1):
        share = (t - warmup) / (total - warmup)
        published = t / warmup if t < warmup else (1 + math.cos(math.pi * share)) / 2
        ours = warmup_cosine(t, total_steps=total, peak_lr=lr_max)
        assert ours == pytest.approx(lr_max * published, abs=1e-9)


def test_warmup_can_start_above_zero():
    lr = warmup_cosine(0, total_steps=20, peak_lr=0.1, start_fraction=0.25)
    assert lr == pytest.approx(0.025)


# --- Properties -----------------------------------------------------------------------------


@given(st.sampled_from(RISING), lengths, peaks, fractions)
def test_rates_rise_to_the_peak_then_fall_to_the_end_and_stay(schedule, total, peak, fraction):
    rise = functions.round_down(total, fraction)
    assume(rise > 0)
    lr = whole(schedule, total, peak_lr=peak, warmup_fraction=fraction)
    assert lr[: rise + 1] == sorted(lr[: rise + 1])
    assert lr[rise:] == sorted(lr[rise:], reverse=True)
    assert lr[rise] == max(lr) == pytest.approx(peak, rel=1e-12)
    assert lr[total + 1] == lr[total]


@given(lengths, peaks, fractions, st.floats(1, 1e4), st.floats(1, 1e6))
def test_ends_and_band_follow_the_ratios(total, peak, fraction, first, last):
    rise = functions.round_down(total, fraction)
    assume(rise > 0)
    one = whole(
        one_cycle,
        total,
        peak_lr=peak,
        warmup_fraction=fraction,
        start_ratio=first,
        final_ratio=last,
    )
    assert one[0] == pytest.approx(peak / first)
    assert one[total] == pytest.approx(peak / last)
    slanted = whole(slanted_triangular, total, peak_lr=peak, warmup_fraction=fraction, ratio=first)
    assert slanted[0] == pytest.approx(peak / first)
    assert slanted[total] == pytest.approx(peak / first)
    for lr, lowest in ((one, peak / max(first, last)), (slanted, peak / first)):
        assert min(lr) >= lowest * (1 - 1e-9)
        assert max(lr) <= peak * (1 + 1e-12)


@given(st.sampled_from([*RISING, cosine]), lengths, peaks)
def test_the_peak_scales_everything(schedule, total, peak):
    kwargs = {} if schedule is cosine else {"warmup_steps": total // 3}
    unit = whole(schedule, total, peak_lr=1.0, **kwargs)
    assert whole(schedule, total, peak_lr=peak, **kwargs) == pytest.approx(
        [peak * lr for lr in unit]
    )


@given(st.sampled_from(RISING), st.integers(1, 3), st.integers(0, 2))
def test_one_two_and_three_steps_work_with_a_rise_in_steps(schedule, total, rise):
    assume(rise < total)
    lr = whole(schedule, total, peak_lr=0.1, warmup_steps=rise)
    assert all(math.isfinite(rate) for rate in lr)
    assert lr[rise] == max(lr) == pytest.approx(0.1)


@pytest.mark.parametrize("total", [1, 2, 3])
def test_cosine_and_constant_have_no_shortest_length(total):
    assert cosine(0, total_steps=total, peak_lr=0.1) == pytest.approx(0.1)
    assert constant(total, total_steps=total, peak_lr=0.1) == 0.1


def test_a_share_that_is_a_whole_number_of_steps_is_not_rounded_away():
    assert math.floor(100 * 0.29) == 28  # what a plain floor gives
    assert functions.count_warmup_steps(100, 0.29) == 29


# --- Bad input ------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", RISING)
@pytest.mark.parametrize("total", [1, 2, 3, 5])
def test_a_rise_of_no_steps_is_an_error_that_says_how_many_are_needed(schedule, total):
    message = (
        rf"at least one step for the rise\. Received: total_steps={total}, warmup_fraction=0.1 "
        r"\(a rise of 0 steps\)\. Use at least 10 steps"
    )
    with pytest.raises(ValueError, match=message):
        schedule(0, total_steps=total, peak_lr=0.1, warmup_fraction=0.1)


def test_as_many_steps_as_the_error_asks_for_are_enough():
    for percent in range(1, 100):
        steps = math.ceil(100 / percent - 1e-9)
        assert functions.count_warmup_steps(max(steps, 2), percent / 100) >= 1


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"peak_lr": -1e-3}, ValueError, "`peak_lr` must be finite and at least 0"),
        ({"peak_lr": math.nan}, ValueError, "`peak_lr` must be finite.*nan"),
        ({"total_steps": 0}, ValueError, "`total_steps` must be at least 1"),
        ({"total_steps": 10.0}, TypeError, "`total_steps` must be a whole number"),
        ({"warmup_fraction": 0.0}, ValueError, "`warmup_fraction` must be .*above 0"),
        ({"warmup_fraction": 1.0}, ValueError, "`warmup_fraction` must be .*below 1"),
        ({"warmup_steps": 100}, ValueError, "at least one step for the fall.*warmup_steps=100"),
        ({"step": -1}, ValueError, "`step` must be finite and at least 0"),
    ],
)
@pytest.mark.parametrize("schedule", RISING)
def test_bad_arguments_are_refused(schedule, arguments, error, message):
    with pytest.raises(error, match=message):
        schedule(**{"step": 0, "total_steps": 100, "peak_lr": 0.1, **arguments})


@pytest.mark.parametrize(
    ("schedule", "name"),
    [(one_cycle, "start_ratio"), (one_cycle, "final_ratio"), (slanted_triangular, "ratio")],
)
def test_ratios_below_1_are_refused(schedule, name):
    with pytest.raises(ValueError, match=f"`{name}` must be finite and at least 1"):
        schedule(0, total_steps=100, peak_lr=0.1, **{name: 0.5})


@pytest.mark.parametrize("name", ["start_fraction", "final_fraction"])
def test_fractions_above_1_are_refused(name):
    with pytest.raises(ValueError, match=f"`{name}` must be .*at most 1"):
        warmup_cosine(0, total_steps=100, peak_lr=0.1, **{name: 1.5})


def test_the_functions_need_no_keras():
    # Loaded from its file, because the package's `__init__` imports Keras.
    script = (
        "import importlib.util as u, sys, types\n"
        "for name in ('keras', 'tensorflow'): sys.modules[name] = None\n"
        "root = sys.argv[1]\n"
        "package = types.ModuleType('keras_transfer'); package.__path__ = [root]\n"
        "sys.modules['keras_transfer'] = package\n"
        "spec = u.spec_from_file_location('functions', root + '/schedules/functions.py')\n"
        "module = u.module_from_spec(spec); spec.loader.exec_module(module)\n"
        "print(module.one_cycle(1, total_steps=4, peak_lr=1.0))\n"
    )
    root = functions.__file__.rsplit("/schedules/", 1)[0]
    done = subprocess.run(
        [sys.executable, "-c", script, root], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "1.0"
