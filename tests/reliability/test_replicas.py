"""A training on two replicas that stops goes on as if it had not."""

import pytest

from tests.replicas import run_in_child

pytestmark = pytest.mark.distributed


def test_two_replicas_go_on_at_the_very_step_and_epoch():
    results = {r["case"]: r for r in run_in_child("tests.replicas.resuming", "steps", "epochs")}
    assert results.keys() == {"steps", "epochs"}
    for result in results.values():
        assert result["replicas"] == 2
        assert result["lost"] == []
        assert result["variables"] > 20
        assert len(set(result["losses"])) == 4
    # Statistics of each replica are kept, not their mean.
    assert results["steps"]["of_each_replica"] > 0
