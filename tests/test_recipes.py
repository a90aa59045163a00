import keras
import numpy as np
import pytest

import keras_transfer as ktf
from keras_transfer import recipes

RECIPES = [
    recipes.linear_probe,
    recipes.lp_ft,
    recipes.gradual_unfreezing,
    recipes.full_fine_tuning,
]


def make_model(optimizer, kind="transfer"):
    """Every parameter is 1, so that only the weight decay makes one smaller."""
    backbone = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(4, name="stem"),
            keras.layers.LayerNormalization(name="norm"),
            keras.layers.Dense(4, name="middle"),
        ]
    )
    head = keras.layers.Dense(2, name="top")
    if kind == "transfer":
        model = ktf.TransferModel(backbone, head, groups="blocks")
    else:
        model = keras.Sequential([backbone, head])
    for variable in model.trainable_variables:
        variable.assign(np.ones(variable.shape))
    model.compile(optimizer, loss=lambda y, p: 0.0 * keras.ops.mean(p))
    return model


def fit(model, plan=None, epochs=None):
    callbacks = []
    if plan is not None:
        epochs = plan.total_epochs
        callbacks = [ktf.callbacks.GradualUnfreezing(plan, verbose=0)]
    x = np.ones((8, 4), "float32")
    model.fit(x, np.ones((8, 2)), epochs=epochs or 1, verbose=0, callbacks=callbacks)


def decayed(model):
    return {v.path.split("/")[-2] + "/" + v.name for v in model.weights if v.numpy().max() < 1}


KERNELS = {"stem/kernel", "middle/kernel", "top/kernel"}


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_spare_norms_and_biases_and_survive_json(recipe):
    plan = recipe()
    assert plan.no_decay_on == ("norm", "bias")
    assert ktf.UnfreezingPlan.from_json(plan.to_json()) == plan
    assert recipe(no_decay_on=()).no_decay_on == ()


@pytest.mark.usually("transfer")
@pytest.mark.parametrize("kind", ["transfer", "stock"])
def test_norms_and_biases_do_not_decay_under_a_recipe_and_all_do_without(kind):
    model = make_model(keras.optimizers.AdamW(0.1, weight_decay=0.1), kind)
    fit(model, recipes.lp_ft(1, 1))
    assert decayed(model) == KERNELS
    # The rule is the plan's: without it the optimizer does again what its user said.
    model.trainable = True
    if kind == "stock":
        model.compile(model.optimizer, model.loss)
    fit(model)
    assert len(decayed(model)) == len(model.trainable_variables) == 8


def test_a_plan_adds_to_what_the_optimizer_was_told():
    optimizer = ktf.optimizers.discriminative(
        keras.optimizers.AdamW(0.1, weight_decay=0.1), no_decay_on=[".*middle/kernel"]
    )
    model = make_model(optimizer)
    fit(model, recipes.full_fine_tuning(1))
    assert decayed(model) == KERNELS - {"middle/kernel"}
    assert optimizer.no_decay_on == (".*middle/kernel",)


@pytest.mark.exhaustive
def test_a_pattern_exempts_what_it_matches_whole():
    model = make_model(keras.optimizers.AdamW(0.1, weight_decay=0.1))
    plan = ktf.UnfreezingPlan(
        [ktf.Stage("all", depth="all", epochs=1, peak_lr=0.1)], no_decay_on=[".*stem/.*", "norm"]
    )
    fit(model, plan)
    assert decayed(model) == {"middle/kernel", "middle/bias", "top/kernel", "top/bias"}


@pytest.mark.parametrize(
    ("rules", "error", "message"),
    [
        ([3], TypeError, "must hold 'norm', 'bias' or regular expressions.* Received: 3"),
        (3, TypeError, "must hold 'norm', 'bias' or regular expressions.* Received: 3"),
        (["(a"], ValueError, r"holds '\(a', which is not a valid regular expression"),
    ],
)
def test_bad_rules_are_errors_where_they_are_written(rules, error, message):
    with pytest.raises(error, match=message):
        recipes.lp_ft(no_decay_on=rules)
    with pytest.raises(error, match=message):
        ktf.optimizers.discriminative("adamw", no_decay_on=rules)


def test_a_rule_that_matches_no_variable_is_an_error_before_training():
    model = make_model("adamw")
    plan = recipes.lp_ft(no_decay_on=["norms"])
    for use in (lambda: ktf.describe(model, plan), lambda: fit(model, plan)):
        with pytest.raises(ValueError, match=r"matches 'norms' .* Did you mean 'norm'"):
            use()


def test_describe_counts_what_does_not_decay_where_the_optimizer_decays():
    plan = recipes.lp_ft()
    # Three biases of 4, 4 and 2, and the scale and offset of the norm.
    note = "No weight decay on norm, bias: 18 parameters."
    assert note in str(ktf.describe(make_model("adamw"), plan))
    assert "No weight decay" not in str(ktf.describe(make_model("adam"), plan))


def test_a_plan_with_an_unknown_key_is_an_error():
    config = {**recipes.lp_ft().get_config(), "no_decay": ["norm"]}
    with pytest.raises(ValueError, match=r"no argument 'no_decay'\. Did you mean 'no_decay_on'"):
        ktf.UnfreezingPlan.from_config(config)


@pytest.mark.usually(
    "linear_probe-arguments0-trains0",
    "lp_ft-arguments1-trains1",
    "full_fine_tuning-arguments3-trains3",
)
@pytest.mark.parametrize(
    ("recipe", "arguments", "trains"),
    [
        (recipes.linear_probe, {"epochs": 2}, ["top", "top"]),
        (recipes.lp_ft, {"probe_epochs": 1, "fine_tune_epochs": 1}, ["top", "all"]),
        (
            recipes.gradual_unfreezing,
            {"num_stages": 3, "epochs_per_stage": 1, "last_stage_epochs": 1},
            ["top", "middle", "all"],
        ),
        (recipes.full_fine_tuning, {"epochs": 1}, ["all"]),
    ],
)
def test_a_recipe_trains_what_its_paper_trains(recipe, arguments, trains):
    model = make_model("adam")
    plan = recipe(**arguments)
    assert plan.total_epochs == len(trains)
    sizes = {"top": 4 * 2 + 2, "middle": 4 * 4 + 4 + 4 * 2 + 2}
    sizes["all"] = sum(group.parameters for group in model.layer_groups)
    callbacks = [ktf.callbacks.GradualUnfreezing(plan, verbose=0)]
    history = model.fit(np.ones((8, 4)), np.ones((8, 2)), verbose=0, callbacks=callbacks).history
    assert history["trainable_parameters"] == [sizes[name] for name in trains]


@pytest.mark.parametrize(
    ("recipe", "arguments", "message"),
    [
        (recipes.linear_probe, {"epochs": 0}, "a stage needs `epochs`"),
        (recipes.lp_ft, {"fine_tune_lr": -1.0}, "`peak_lr` must be finite and above 0"),
        (recipes.lp_ft, {"schedule": "one_cicle"}, "Did you mean 'one_cycle'"),
        (recipes.gradual_unfreezing, {"num_stages": 1}, "`num_stages` must be at least 2"),
        (recipes.full_fine_tuning, {"lr_decay": 1.5}, "`lr_decay` must be finite and at most 1"),
    ],
)
def test_wrong_numbers_are_an_error_when_the_recipe_is_called(recipe, arguments, message):
    with pytest.raises(ValueError, match=message):
        recipe(**arguments)


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_says_where_it_comes_from_and_what_it_does_not_promise(recipe):
    text = recipe.__doc__
    assert "does not promise" in text
    assert "arxiv.org" in text
    assert "Use it" in text or "recommended default" in text
