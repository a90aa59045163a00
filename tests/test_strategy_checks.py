"""Mistakes under a strategy are errors at the start, and say what to do."""

import pytest

from tests.replicas import run_in_child

pytestmark = pytest.mark.distributed

KINDS = ("stock", "transfer")
OUTSIDE = "were made outside the scope of the model's MirroredStrategy: "
ERRORS = {
    "backbone_outside": ("2 variables of ", OUTSIDE, "/stem/kernel", "Build backbone and head"),
    "optimizer_outside": ("'s optimizer " + OUTSIDE, "/iteration", "call `compile` within"),
    "fit_inside_model_outside": ("4 variables of ", OUTSIDE, "/stem/kernel"),
    "steps_per_execution": ("steps_per_execution=2 on 2 replicas", "leave it at 1"),
    "jit_compile": ("jit_compile=True on 2 replicas", "leave it at 'auto'"),
}
WORKS = ("fine", "accumulation", "overwriting", "synchronized_batch_norm")
WARNS = {
    "local_batch_norm": ("(norm)", "synchronized=True", "`batch_norm`"),
    "keras_distribution": ("DataParallel` has no effect", "MirroredStrategy"),
}


@pytest.fixture(scope="module")
def results():
    return {result["case"]: result for result in run_in_child("tests.replicas.mistakes")}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", ERRORS)
def test_a_mistake_is_an_error_before_any_weight_moves(results, case, kind):
    result = results[f"{kind}/{case}"]
    assert result["error"].startswith("ValueError: ")
    for part in ERRORS[case]:
        assert part in result["error"]
    assert not result["moved"]


def test_a_transfer_model_compiled_outside_is_an_error_that_names_the_remedy(results):
    result = results["transfer/compiled_outside"]
    assert "transfer_model_3's optimizer " + OUTSIDE in result["error"]
    assert "call `compile` within" in result["error"]


def test_a_stock_model_compiled_outside_fails_before_callbacks_are_asked(results):
    # When Keras accepts this, the callback has to check it.
    assert "Mixing different tf.distribute.Strategy" in results["stock/compiled_outside"]["error"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", WORKS)
def test_what_works_says_nothing(results, case, kind):
    result = results[f"{kind}/{case}"]
    assert (result["error"], result["warnings"], result["moved"]) == ("", [], True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", WARNS)
def test_what_gives_other_numbers_than_expected_warns_once(results, case, kind):
    result = results[f"{kind}/{case}"]
    (warning,) = result["warnings"]
    for part in WARNS[case]:
        assert part in warning
    assert (result["error"], result["moved"]) == ("", True)
