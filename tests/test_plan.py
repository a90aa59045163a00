import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_transfer import Stage, UnfreezingPlan

plans = st.lists(st.integers(1, 6), min_size=1, max_size=5).map(
    lambda epochs: UnfreezingPlan(
        [Stage(f"s{i}", depth=i + 1, epochs=n) for i, n in enumerate(epochs)]
    )
)


@st.composite
def stages(draw, name="s"):
    """Any stage that its own checks let pass."""
    epochs = draw(st.integers(1, 6))
    what = draw(
        st.one_of(
            st.fixed_dictionaries({"depth": st.one_of(st.just("all"), st.integers(1, 9))}),
            st.fixed_dictionaries({"train": st.sampled_from(["all", "bias", "norm", "head"])}),
            st.fixed_dictionaries({"train": st.lists(st.text("abc.*", min_size=1), min_size=1)}),
        )
    )
    rate = st.floats(1e-8, 10, allow_nan=False)
    options = draw(
        st.fixed_dictionaries(
            {},
            optional={
                "peak_lr": rate,
                "lr_decay": st.floats(0.01, 1),
                "min_delta": st.floats(0, 1),
                "patience": st.integers(0, 5),
                "mode": st.sampled_from(["auto", "min", "max"]),
                "monitor": st.sampled_from(["loss", "val_accuracy"]),
                "restore_best_weights": st.booleans(),
            },
        )
    )
    schedule = draw(st.sampled_from([None, "constant", "one_cycle", "warmup_cosine"]))
    if schedule is not None:
        options["schedule"] = schedule
    if schedule not in (None, "constant") and draw(st.booleans()):
        options["warmup_epochs"] = draw(st.floats(0, epochs - 0.5))
    return Stage(name, epochs=epochs, **what, **options)


@given(stages(), st.sampled_from([(), ("norm", "bias"), (".*gamma",)]))
def test_any_stage_survives_json_and_pickling(stage, no_decay_on):
    plan = UnfreezingPlan([stage], no_decay_on=no_decay_on)
    assert UnfreezingPlan.from_json(plan.to_json(indent=None)) == plan
    assert UnfreezingPlan.from_config(plan.get_config()) == plan
    assert pickle.loads(pickle.dumps(plan)) == plan
    assert hash(plan.stages[0]) == hash(Stage.from_config(stage.get_config()))
    assert plan.ends_on_plateau == (stage.patience is not None)
    with pytest.raises(AttributeError):
        stage.epochs = 9


@given(plans)
def test_every_epoch_has_its_stage_and_a_plan_survives_json_and_pickling(plan):
    order = [plan.index_at(epoch) for epoch in range(plan.total_epochs)]
    assert order == sorted(order)
    assert set(order) == set(range(len(plan.stages)))
    assert [order.index(i) for i in range(len(plan.stages))] == [
        plan.first_epoch(i) for i in range(len(plan.stages))
    ]
    assert UnfreezingPlan.from_json(plan.to_json()) == plan
    assert pickle.loads(pickle.dumps(plan)) == plan


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": 1}, "needs `epochs`"),
        ({"epochs": 1}, "exactly one of `depth`"),
        ({"depth": 1, "train": "all", "epochs": 1}, "exactly one of `depth`"),
        ({"depth": 0, "epochs": 1}, "`depth` must be at least 1"),
        ({"depth": "everything", "epochs": 1}, "`depth` must be one of 'all'"),
        ({"depth": 1, "epochs": 1, "peak_lr": -1}, "`peak_lr` must be finite and above 0"),
        ({"depth": 1, "epochs": 1, "lr_decay": 2}, "`lr_decay` must be finite and at most 1"),
        ({"depth": 1, "epochs": 1, "schedule": "one_cicle"}, "Did you mean 'one_cycle'"),
        ({"depth": 1, "epochs": 1, "warmup_epochs": 1}, "this stage has none"),
        ({"train": [], "epochs": 1}, "names no layer group"),
        ({"train": ["bias"], "epochs": 1}, "stands alone"),
    ],
)
def test_a_wrong_stage_is_an_error_that_names_the_stage(arguments, message):
    with pytest.raises(ValueError, match=rf"Stage 'x': .*{message}"):
        Stage("x", **arguments)


def test_two_stages_of_one_name_are_an_error():
    with pytest.raises(ValueError, match=r"different names\. Received twice: 'a'"):
        UnfreezingPlan([Stage("a", depth=1, epochs=1), Stage("a", depth=2, epochs=1)])


@pytest.mark.parametrize("value", ["no", 1, None])
def test_whether_to_restore_the_best_weights_is_yes_or_no(value):
    with pytest.raises(TypeError, match="Stage 'x': `restore_best_weights` must be True or False"):
        Stage("x", depth=1, epochs=1, patience=1, restore_best_weights=value)


@pytest.mark.parametrize("stages", [None, 3, "lp_ft"])
def test_what_is_no_list_of_stages_is_refused(stages):
    with pytest.raises(TypeError, match=r"`stages` must be a list of stages\. Received: stages="):
        UnfreezingPlan(stages)


def test_json_is_a_string():
    config = UnfreezingPlan([Stage("a", depth=1, epochs=1)]).get_config()
    with pytest.raises(TypeError, match=r"there is `from_config`\. Received: \{'stages'"):
        UnfreezingPlan.from_json(config)


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        ({"depth": 1, "epochs": 1}, ValueError, "needs a `name`. Received: {'depth': 1"),
        ({"name": "a", "dept": 1}, ValueError, "no argument 'dept'. Did you mean 'depth'"),
        (["a"], TypeError, r"must be a mapping. Received: \['a'\]"),
    ],
)
def test_a_config_that_makes_no_stage_is_refused(config, error, message):
    with pytest.raises(error, match=message):
        Stage.from_config(config)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "must hold `stages`, a list. Received: {}"),
        ({"stages": [{"name": "a", "depth": 1, "epochs": 1}], "no_decay": []}, "Did you mean"),
    ],
)
def test_a_config_that_makes_no_plan_is_refused(config, message):
    with pytest.raises(ValueError, match=message):
        UnfreezingPlan.from_config(config)


def test_text_that_is_no_json_is_refused():
    with pytest.raises(ValueError, match="The plan is not valid JSON"):
        UnfreezingPlan.from_json("{")
