"""A cached training on two replicas equals an uncached one on one replica."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest


@pytest.mark.distributed
def test_two_cached_replicas_are_one_that_is_not_cached():
    child = subprocess.run(
        [sys.executable, "-m", "tests.replicas.feature_cache"],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"},
        check=False,
    )
    assert child.returncode == 0, child.stderr[-3000:]
    result = json.loads(child.stdout.splitlines()[-1])
    assert result["replicas"] == 2
    assert result["passes"] == ["training", "validation"]
    assert result["decision"].startswith("Feature cache on for stage 'probe' (")
    for one, two in (result["losses"], result["val_losses"]):
        np.testing.assert_allclose(two, one, rtol=1e-5)
    assert result["losses"][0][0] - result["losses"][0][-1] > 0.1, "nothing was learnt"
    assert result["distance"] < 1e-5
    assert result["perturbed"] > 1e-4, "the control: features do matter"
