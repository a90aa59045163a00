"""Mistakes under a strategy are errors at the start, and say what to do."""

import keras
import pytest
import tensorflow as tf

import keras_transfer as ktf
from keras_transfer import _strategy_checks
from tests.processes import run_in_child

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
ALWAYS = ("compiled_outside", "central_storage")
WORKS = ("fine", "accumulation", "overwriting", "synchronized_batch_norm")
WARNS = {
    "local_batch_norm": ("(norm)", "synchronized=True", "`batch_norm`"),
    "keras_distribution": ("DataParallel` has no effect", "MirroredStrategy"),
}


@pytest.fixture(scope="module")
def results(parameters_that_run):
    cases = {f"{one['kind']}/{one['case']}" for one in parameters_that_run if "kind" in one}
    cases |= {f"{kind}/{case}" for kind in KINDS for case in ALWAYS}
    found = run_in_child("tests.replicas.mistakes", *sorted(cases))
    return {result["case"]: result for result in found}


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
    assert "'s optimizer " + OUTSIDE in result["error"]
    assert "call `compile` within" in result["error"]


def test_a_stock_model_compiled_outside_fails_before_callbacks_are_asked(results):
    # When Keras accepts this, the callback has to check it.
    assert "Mixing different tf.distribute.Strategy" in results["stock/compiled_outside"]["error"]


@pytest.mark.usually("fine-stock", "accumulation-transfer", "synchronized_batch_norm-transfer")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", WORKS)
def test_what_works_says_nothing(results, case, kind):
    result = results[f"{kind}/{case}"]
    assert (result["error"], result["warnings"], result["moved"]) == ("", [], True)


@pytest.mark.usually("local_batch_norm-stock", "keras_distribution-transfer")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", WARNS)
def test_what_gives_other_numbers_than_expected_warns_once(results, case, kind):
    result = results[f"{kind}/{case}"]
    (warning,) = result["warnings"]
    for part in WARNS[case]:
        assert part in warning
    assert (result["error"], result["moved"]) == ("", True)


@pytest.mark.parametrize("batch_norm", ["train", "freeze"])
def test_a_batch_norm_without_scale_and_offset_moves_with_its_group(batch_norm):
    norm = keras.layers.BatchNormalization(center=False, scale=False)
    body = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, name="stem"), norm])
    backbone = ktf.layers.PretrainedBackbone(body, batch_norm=batch_norm, groups="blocks")
    model = ktf.TransferModel(backbone, keras.layers.Dense(1))
    moves = _strategy_checks.batch_norms_that_move
    assert moves(model, model.weights) == ([norm] if batch_norm == "train" else [])
    assert moves(model, model.head.weights) == []


def bare(strategy_class):
    """An object of TensorFlow's own class, without the machines that its constructor looks for."""
    return object.__new__(strategy_class)


@pytest.mark.parametrize(
    "strategy_class",
    [
        tf.distribute.ParameterServerStrategy,
        tf.distribute.experimental.ParameterServerStrategy,
        tf.distribute.experimental.CentralStorageStrategy,
        tf.compat.v1.distribute.experimental.CentralStorageStrategy,
    ],
)
def test_a_strategy_that_cannot_work_is_refused_with_what_to_use_instead(strategy_class):
    with pytest.raises(ValueError, match="MirroredStrategy") as error:
        _strategy_checks.check_kind(bare(strategy_class))
    assert f"strategy={strategy_class.__name__}" in str(error.value)


@pytest.mark.parametrize(
    "strategy_class", [tf.distribute.TPUStrategy, tf.distribute.experimental.TPUStrategy]
)
def test_a_tpu_was_never_tried_and_a_warning_says_so(strategy_class):
    with pytest.warns(UserWarning, match="never tried under TPUStrategy") as caught:
        _strategy_checks.check_kind(bare(strategy_class))
    assert len(caught) == 1


def test_a_model_built_under_central_storage_is_refused_before_it_trains(results):
    for kind in KINDS:
        result = results[f"{kind}/central_storage"]
        assert result["error"].startswith("ValueError: metrics come out wrong under it.")
        assert not result["moved"]
