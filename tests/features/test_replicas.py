"""A cached training on two replicas equals an uncached one on one replica."""

import numpy as np
import pytest

from tests.processes import run_in_child


@pytest.mark.distributed
def test_two_cached_replicas_are_one_that_is_not_cached():
    (result,) = run_in_child("tests.replicas.feature_cache")
    assert result["replicas"] == 2
    assert result["passes"] == ["training", "validation"]
    assert result["ran_on"] == [0, 1], "the pass uses all replicas"
    assert result["decision"].startswith("Feature cache on for stage 'probe' (")
    for one, two in (result["losses"], result["val_losses"]):
        np.testing.assert_allclose(two, one, rtol=1e-5)
    assert result["losses"][0][0] - result["losses"][0][-1] > 0.1, "nothing was learnt"
    assert result["distance"] < 1e-5
    assert result["perturbed"] > 1e-4, "the control: features do matter"
