"""A cached training on two replicas equals an uncached one on one replica."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

CASES = ("arrays", "data set")

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def results():
    child = subprocess.run(
        [sys.executable, "-m", "tests.replicas.feature_cache", *CASES],
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
def test_two_cached_replicas_are_one_that_is_not_cached(results, case):
    result = results[case]
    assert result["replicas"] == 2
    assert result["passes"] == ["training", "validation"]
    assert "stage 'probe'" in result["decision"].split("; off")[0]
    for one, two in (result["losses"], result["val_losses"]):
        np.testing.assert_allclose(two, one, rtol=1e-5)
    assert result["losses"][0][0] - result["losses"][0][-1] > 0.1, "nothing was learnt"
    assert result["distance"] < 1e-5
    assert result["perturbed"] > 1e-4, "the control: features do matter"
