"""Two replicas equal one at the same global batch size; each case unfreezes on the way."""

import json
import os
import subprocess
import sys

import pytest

CASES = (
    "sgd/clipnorm",
    "adamw/clipvalue",
    "adamw/global_clipnorm",
    "adamw/ema_overwrite",
    "adamw/accumulate_clip",
    "adamw/loss_scale",
    "lion/ema",
    "nadam/plain",
    "muon/plain",
    "by_hand/adamw",
    "take_over/adamw",
)
CONTROL = "adamw/stock_clipnorm"

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def results():
    child = subprocess.run(
        [sys.executable, "-m", "tests.optimizers.two_replicas", *CASES, CONTROL],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"},
        check=False,
    )
    lines = [line for line in child.stdout.splitlines() if line.startswith("{")]
    found = {result["case"]: result for result in map(json.loads, lines)}
    assert child.returncode == 0, f"{sorted(found)} ran, then: {child.stderr[-3000:]}"
    return found


@pytest.mark.parametrize("case", CASES)
def test_two_replicas_equal_one(results, case):
    result = results[case]
    assert result["distance"] < 1e-5
    assert result["moved"] > 1e-2, "nothing was trained"
    assert result["steps"] == result["steps_of_two"]


def test_control_stock_clipping_differs_on_replicas(results):
    # Each replica clips before the sum. When this fails, Keras clips after it.
    assert results[CONTROL]["distance"] > 1e-3
