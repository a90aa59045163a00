"""Gradual unfreezing on two replicas equals that on one, at the same global batch size."""

import numpy as np
import pytest

from tests.processes import run_in_child
from tests.replicas.unfreezing import BATCH_NORM

USUALLY = pytest.mark.usually("stock/froze_first", "transfer/as_it_is")
CASES = ("stock/froze_first", "stock/as_it_is", "transfer/froze_first", "transfer/as_it_is")

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def results(parameters_that_run):
    cases = {one["case"] for one in parameters_that_run}
    found = run_in_child("tests.replicas.unfreezing", *sorted(cases))
    return {result["case"]: result for result in found}


@USUALLY
@pytest.mark.parametrize("case", CASES)
def test_loss_curve_and_weights_of_two_replicas_are_those_of_one(results, case):
    result = results[case]
    assert result["replicas"] == 2
    np.testing.assert_allclose(result["losses_of_two"], result["losses"], atol=1e-5)
    assert result["distance"] < 1e-5
    assert result["losses"][0] - result["losses"][-1] > 0.1, "nothing was learnt"


@USUALLY
@pytest.mark.parametrize("case", CASES)
def test_on_two_replicas_only_the_groups_of_the_stage_move(results, case):
    # Batch statistics move under "train" alone; scale and offset under "inference" too.
    policy = BATCH_NORM[case]
    norm = () if policy == "freeze" else ("_bn/beta", "_bn/gamma")
    if policy == "train":
        norm = (*norm, "_bn/moving_mean", "_bn/moving_variance")

    def weights_of(*groups):
        found = [group + weight for group in groups for weight in ("/bias", "/kernel", *norm)]
        return sorted(["new/bias", "new/kernel", *found])

    top = weights_of("top")
    wanted = [weights_of(), top, top, weights_of("stem", "top")]
    assert results[case]["moved_of_two"] == wanted
    assert results[case]["moved"] == wanted


@USUALLY
@pytest.mark.parametrize("case", CASES)
def test_a_stock_model_gets_its_optimizer_back_on_replicas_too(results, case):
    stock = {"stock/froze_first": "Adam", "stock/as_it_is": "SGD"}
    assert results[case]["optimizer"] == stock.get(case, "DiscriminativeOptimizer")
