"""A training on two replicas that stops goes on as if it had not."""

import pytest

from tests.processes import run_in_child

pytestmark = pytest.mark.distributed


@pytest.mark.parametrize("case", ["steps", pytest.param("epochs", marks=pytest.mark.exhaustive)])
def test_two_replicas_go_on_where_they_stopped(case):
    results = {r["case"]: r for r in run_in_child("tests.replicas.resuming", case)}
    assert results.keys() == {case}
    for result in results.values():
        assert result["replicas"] == 2
        assert result["lost"] == []
        assert result["variables"] > 20
        assert len(set(result["losses"])) == 4
    # Statistics of each replica are kept, not their mean.
    assert results[case]["of_each_replica"] > 0
