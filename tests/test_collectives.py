"""What the replicas exchange in a step: what trains, and nothing that is frozen."""

import pytest

from tests.processes import run_in_child

pytestmark = [pytest.mark.distributed, pytest.mark.exhaustive]


@pytest.fixture(scope="module")
def stages():
    return {result["stage"]: result for result in run_in_child("tests.replicas.collectives")}


@pytest.mark.parametrize("stage", ["probe", "top", "all"])
def test_what_is_summed_over_replicas_is_what_trains(stages, stage):
    result = stages[stage]
    assert sorted(result["summed"]) == sorted(result["training"])
    assert result["reductions"] == 1, "all gradients in one"


def test_each_stage_sums_more_than_the_one_before(stages):
    sizes = [len(stages[name]["summed"]) for name in ("probe", "top", "all")]
    assert sizes == [2, 4, 6]


def test_a_batch_of_unknown_size_costs_one_number_more(stages):
    # So that all examples weigh alike where replicas have other numbers of them.
    result = stages["uneven"]
    assert sorted(result["summed"]) == sorted([*result["training"], []])
    assert result["reductions"] == 2
