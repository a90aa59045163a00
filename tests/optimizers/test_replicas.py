"""Two replicas equal one at the same global batch size; each case unfreezes on the way."""

import pytest

from tests.processes import run_in_child

CASES = (
    "sgd/clipnorm",
    "muon/ema_overwrite",
    "adamw/accumulate_clip",
    "nadam/loss_scale",
    "by_hand/adamw",
    "take_over/adamw",
    "lion/clipvalue",
    "adamw/global_clipnorm",
)
CONTROL = "adamw/stock_clipnorm"
OVERFLOWS = ("overflow/ours", "overflow/stock")

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def results(parameters_that_run):
    cases = sorted({one["case"] for one in parameters_that_run})
    found = run_in_child("tests.optimizers.two_replicas", *cases, CONTROL, *OVERFLOWS)
    return {result["case"]: result for result in found}


@pytest.mark.usually("adamw/accumulate_clip")
@pytest.mark.parametrize("case", CASES)
def test_two_replicas_equal_one(results, case):
    result = results[case]
    assert result["distance"] < 1e-5
    assert result["moved"] > 1e-2, "nothing was trained"
    assert result["steps"] == result["steps_of_two"]


def test_control_stock_clipping_differs_on_replicas(results):
    # Each replica clips before the sum. When this fails, Keras clips after it.
    assert results[CONTROL]["distance"] > 1e-3


def test_gradients_that_overflow_on_one_replica_alone_are_skipped_on_all(results):
    ours, stock = (results[case] for case in OVERFLOWS)
    assert ours["after"] == ours["before"]
    assert ours["scale"] == 2.0**14
    # The control: when this fails, Keras asks all replicas itself.
    assert stock["after"] != stock["before"]
    assert stock["scale"] == 2.0**15
