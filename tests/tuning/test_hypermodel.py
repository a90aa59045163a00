import keras
import keras_tuner
import numpy as np
import pytest
import tensorflow as tf

import keras_transfer as ktf
from keras_transfer.tuning._parts import Fixed
from tests.features.toys import assert_has_spread
from tests.tuning import toys

# --- Any tuner --------------------------------------------------------------------------------


class Own(keras_tuner.Oracle):
    """A user's own: the same trial twice, the second time going on from the first."""

    def populate_space(self, trial_id):
        number = len(self.trials)
        if number == 2:
            return {"status": "STOPPED"}
        values = {"head_lr": 0.05, "stage_2_lr_ratio": 0.5}
        values["tuner/epochs"], values["tuner/initial_epoch"] = [(2, 0), (6, 2)][number]
        if number:
            values["tuner/trial_id"] = next(iter(self.trials))
        return {"status": "RUNNING", "values": values}


TUNERS = {
    "random": lambda model, **kw: keras_tuner.RandomSearch(model, "val_loss", 2, seed=3, **kw),
    "grid": lambda model, **kw: keras_tuner.GridSearch(model, "val_loss", 2, **kw),
    "bayesian": lambda model, **kw: keras_tuner.BayesianOptimization(
        model, "val_loss", 2, num_initial_points=1, seed=3, **kw
    ),
    "hyperband": lambda model, **kw: keras_tuner.Hyperband(
        model, "val_loss", max_epochs=2, factor=2, seed=3, **kw
    ),
}


@pytest.mark.usually("hyperband")
@pytest.mark.parametrize(
    "name",
    [
        "bayesian",
        "hyperband",
        pytest.param("random", marks=pytest.mark.exhaustive),  # all other tests use it
        pytest.param("grid", marks=pytest.mark.exhaustive),
    ],
)
@pytest.mark.filterwarnings("ignore:The optimal value found for dimension")
def test_any_tuner_searches_and_the_best_model_is_the_one_that_was_scored(name, tmp_path):
    hypermodel = toys.hypermodel()
    tuner = TUNERS[name](hypermodel, directory=tmp_path)
    toys.search(tuner)
    trials = list(tuner.oracle.trials.values())
    assert len(trials) >= 2
    assert {trial.status for trial in trials} == {"COMPLETED"}
    assert len(set(toys.scores(tuner))) > 1
    model, plan = hypermodel.best(tuner)
    best = min(trials, key=lambda trial: trial.score)
    loss, _ = model.evaluate(*toys.data(16, seed=1), verbose=0)
    assert loss == pytest.approx(best.score, rel=1e-5)
    assert plan.stages[0].peak_lr == best.hyperparameters.values["head_lr"]


def test_a_promoted_trial_goes_on_in_the_right_stage_with_its_optimizer_state(tmp_path):
    """The first of two has its best epoch first, so that the last is another."""
    seen = toys.Seen(lambda m: int(m.optimizer.iterations), lambda m: m.head.get_weights()[0])
    hypermodel = toys.hypermodel(search_space=toys.two_stages())
    objective = keras_tuner.Objective("val_loss", "max")
    tuner = keras_tuner.Tuner(Own(objective), hypermodel, directory=tmp_path)
    toys.search(tuner, callbacks=[seen])
    _, first_end, second_begin, second_end = seen.seen
    assert first_end[0] == second_begin[0] == 6  # two epochs of three steps
    np.testing.assert_array_equal(first_end[1], second_begin[1])
    assert np.abs(first_end[1] - second_end[1]).max() > 1e-3
    assert second_end[0] == 18
    # Of 6 epochs the first 3 are the head's: the third is what comes next.
    first, second = tuner.oracle.trials.values()
    assert [o.value[0] for o in first.metrics.get_history("stage")] != []
    assert [s.epochs for s in hypermodel.plan(second.hyperparameters).stages] == [3, 3]
    assert [s.epochs for s in hypermodel.plan(first.hyperparameters).stages] == [1, 1]
    # The control: what plain KerasTuner had loaded.
    model = tuner.load_model(first)
    assert np.abs(model.head.get_weights()[0] - first_end[1]).max() > 1e-3


# --- Shared features --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "search_space",
    [
        pytest.param(toys.space(), id="head"),
        pytest.param(toys.two_stages(epochs=3), id="two stages", marks=pytest.mark.exhaustive),
    ],
)
def test_frozen_layers_run_once_and_scores_equal_those_of_uncached_trials(
    search_space, tmp_path, capsys
):
    order = {"shuffle": False}  # kernels may round the last bit with the place in the batch
    shared = toys.hypermodel(toys.build_traced_model, search_space)
    one = toys.search(toys.random_search(tmp_path / "a", shared, max_trials=2), verbose=2, **order)
    assert capsys.readouterr().out.count("Caching the features of the training data") == 1
    features = shared.cache.features(toys.build_model(), toys.data()[0], verbose=0)
    assert_has_spread(features)
    apart = toys.hypermodel(toys.build_traced_model, search_space, cache_features=False)
    two = toys.search(toys.random_search(tmp_path / "b", apart, max_trials=2), verbose=2, **order)
    assert "Caching" not in capsys.readouterr().out
    assert toys.scores(one) == toys.scores(two)
    assert len(set(toys.scores(one))) == 2
    # The control: with other features, other scores.
    for table in shared.cache._tables.values():
        for column in table.columns.values():
            column.values.flags.writeable = True
            column.values[:] += 0.01
    three = toys.search(toys.random_search(tmp_path / "c", shared), **order)
    assert toys.scores(three)[0] != toys.scores(one)[0]


def test_data_that_may_differ_is_not_shared(tmp_path, capsys):
    x, y = toys.data()
    noisy = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
    noisy = noisy.map(lambda x, y: (x + tf.random.normal(tf.shape(x)), y))
    tuner = toys.random_search(tmp_path)
    tuner.search(noisy, validation_data=toys.data(16, seed=1), verbose=2)
    assert "Feature cache off: its pipeline draws random numbers" in capsys.readouterr().out
    assert tuner.hypermodel.cache.nbytes == 0


# --- What the model is like -------------------------------------------------------------------


@pytest.mark.exhaustive
def test_best_models_train_what_trained_in_their_best_epoch(tmp_path):
    """The best epoch is the first, in which the head alone trained."""
    objective = keras_tuner.Objective("val_loss", "max")
    hypermodel = toys.hypermodel(search_space=toys.two_stages())
    toys.search(toys.random_search(tmp_path, hypermodel, objective=objective))
    # As in a process that has just begun.
    again = toys.random_search(
        tmp_path, toys.hypermodel(search_space=toys.two_stages()), objective=objective
    )
    model, plan = again.hypermodel.best(again)
    for one in (model, again.get_best_models()[0]):
        assert len(one.trainable_variables) == 2
        assert not one.backbone.trainable_variables
    assert [stage.name for stage in plan.stages] == ["probe", "all"]


def test_values_reach_optimizer_head_and_backbone():
    body = toys.backbone()
    norm = keras.layers.BatchNormalization(name="norm")
    normed = keras.Sequential([keras.Input((6,)), *body.layers, norm])
    hypermodel = toys.hypermodel(
        lambda: toys.build_model(normed),
        toys.space(
            weight_decay=(1e-3, 1e-1), head_dropout=(0.2, 0.6), batch_norm=["freeze", "train"]
        ),
    )
    hp = keras_tuner.HyperParameters()
    hp.values = {"weight_decay": 0.02, "head_dropout": 0.5, "batch_norm": "freeze"}
    model = hypermodel.build(hp)
    assert model.optimizer.weight_decay == 0.02
    assert model.head.get_config()["dropout"] == 0.5
    assert model.backbone.batch_norm == "freeze"
    assert not [v for v in model.backbone.trainable_variables if "norm" in v.path]
    features = model.backbone(toys.data()[0])
    outputs = [np.array(model.head(features, training=True)) for _ in range(2)]
    assert np.abs(outputs[0] - outputs[1]).max() > 1e-3
    hp.values["batch_norm"] = "train"
    assert [v for v in hypermodel.build(hp).backbone.trainable_variables if "norm" in v.path]


def test_a_head_without_dropout_cannot_be_given_any():
    def build():
        model = ktf.TransferModel(toys.backbone(), keras.layers.Dense(2), groups="blocks")
        model.compile("adam", "mse")
        return model

    hypermodel = toys.hypermodel(build, toys.space(head_dropout=(0.1, 0.5)))
    with pytest.raises(ValueError, match="has no dropout layer whose rate could be set"):
        hypermodel.build(keras_tuner.HyperParameters())


def test_a_model_that_is_not_compiled_gets_the_loss_of_its_head():
    def build(head):
        return lambda: ktf.TransferModel(toys.backbone(), head(), groups="blocks")

    hp = keras_tuner.HyperParameters
    heads = ktf.layers
    model = toys.hypermodel(build(lambda: heads.RegressionHead(1))).build(hp())
    assert model.loss == "mse"
    model = toys.hypermodel(build(lambda: heads.ClassificationHead(2, activation=None))).build(hp())
    assert model.loss.get_config()["from_logits"]
    with pytest.raises(ValueError, match="does not say which loss goes with it"):
        toys.hypermodel(build(lambda: keras.layers.Dense(2))).build(hp())


@pytest.mark.exhaustive
def test_mixed_precision_outlives_the_first_trial(tmp_path):
    keras.config.set_dtype_policy("mixed_bfloat16")
    seen = toys.Seen(lambda model: model.backbone.model.layers[0].compute_dtype)
    toys.search(toys.random_search(tmp_path, max_trials=2), callbacks=[seen])
    assert [one for (one,) in seen.seen] == ["bfloat16"] * 4


# --- Callbacks --------------------------------------------------------------------------------


@pytest.mark.exhaustive
def test_each_trial_of_a_search_has_checkpoints_of_its_own(tmp_path):
    resuming = ktf.callbacks.ResumableTraining(tmp_path / "runs", verbose=0)
    plain = toys.search(toys.random_search(tmp_path / "a", max_trials=2))
    tuner = toys.search(toys.random_search(tmp_path / "b", max_trials=2), callbacks=[resuming])
    assert {trial.status for trial in tuner.oracle.trials.values()} == {"COMPLETED"}
    assert toys.scores(plain) == pytest.approx(toys.scores(tuner))
    assert len(list((tmp_path / "runs").iterdir())) == 2


def test_hyperparameters_land_in_tensorboard(tmp_path):
    logs = tmp_path / "logs"
    board = keras.callbacks.TensorBoard(logs)
    toys.search(toys.random_search(tmp_path / "a"), callbacks=[board])
    written = b"".join(path.read_bytes() for path in logs.rglob("*tfevents*"))
    assert b"_hparams_/session_start_info" in written
    assert b"head_lr" in written


# --- Bad input --------------------------------------------------------------------------------


def test_what_is_no_transfer_model_is_an_error_before_the_search(tmp_path):
    for build, what in ((toys.backbone, "a Sequential"), (lambda: None, "nothing")):
        with pytest.raises(TypeError, match=f"must return a `TransferModel`. It returned {what}"):
            toys.random_search(tmp_path, toys.hypermodel(build))
    with pytest.raises(TypeError, match="`build_model` must be a function"):
        toys.hypermodel(toys.build_model())
    with pytest.raises(TypeError, match="`search_space` must be a `SearchSpace`"):
        toys.hypermodel(search_space={"head_lr": (0.1, 0.2)})
    with pytest.raises(ValueError, match="`cache_features` must be 'auto'"):
        toys.hypermodel(cache_features="always")
    with pytest.raises(ValueError, match=r"`seed` must be at least 0\. Received: seed=-1"):
        toys.hypermodel(seed=-1)


@pytest.mark.usually(
    "options0-arguments0-Did you mean 'val_accuracy'",
    "options1-arguments1-no validation data. Pass validation_data=",
)
@pytest.mark.parametrize(
    ("options", "arguments", "message"),
    [
        ({"objective": "val_accurcy"}, {}, "Did you mean 'val_accuracy'"),
        ({}, {"validation_data": None}, "no validation data. Pass validation_data="),
        ({}, {"y": np.full(24, 5)}, "5"),
        (
            {},
            {"callbacks": [ktf.callbacks.GradualUnfreezing(ktf.recipes.linear_probe())]},
            "`callbacks` holds a plan, and the search makes the plans",
        ),
    ],
)
def test_what_cannot_be_searched_is_an_error_before_the_first_trial(
    options, arguments, message, tmp_path
):
    if options:
        options = {"objective": keras_tuner.Objective(options["objective"], "max")}
    tuner = toys.random_search(tmp_path, max_trials=5, **options)
    with pytest.raises(keras_tuner.errors.FatalValueError, match=message):
        toys.search(tuner, **arguments)
    (trial,) = tuner.oracle.trials.values()
    assert trial.metrics.metrics == {}


def test_a_project_of_another_search_space_is_an_error(tmp_path):
    toys.search(toys.random_search(tmp_path))
    other = toys.hypermodel(search_space=toys.space(head_lr=(1e-3, 1e-2)))
    with pytest.raises(ValueError, match="belongs to another search: `head_lr` was"):
        toys.search(toys.random_search(tmp_path, other, max_trials=2))
    toys.random_search(tmp_path, other, overwrite=True)
    assert not list(tmp_path.rglob("search_space.json"))


def test_a_model_built_outside_of_the_strategy_is_an_error(tmp_path):
    body = toys.backbone()
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    tuner = toys.random_search(
        tmp_path, toys.hypermodel(lambda: toys.build_model(body)), distribution_strategy=strategy
    )
    with pytest.raises(ValueError, match=r"6 of its weights.*outside of its scope"):
        toys.search(tuner)


def test_a_search_without_a_completed_trial_has_no_best_one(tmp_path):
    tuner = toys.random_search(tmp_path)
    with pytest.raises(ValueError, match="No trial was completed"):
        tuner.hypermodel.best(tuner)
    # As with a `run_trial` of the user's that keeps nothing.
    trial = tuner.oracle.create_trial("tuner0")
    tuner.oracle.update_trial(trial.trial_id, {"val_loss": 0.5})
    trial.status = "COMPLETED"
    tuner.oracle.end_trial(trial)
    with pytest.raises(ValueError, match="RandomSearch kept no weights of its best trial, 0"):
        tuner.hypermodel.best(tuner)


def test_a_trial_that_diverges_fails_with_the_reason(tmp_path):
    space = toys.space(head_lr=[1e38, 1e-2])
    model = toys.hypermodel(search_space=space)
    tuner = toys.random_search(tmp_path, model, max_trials=2)
    toys.search(tuner)
    by_status = {trial.status: trial for trial in tuner.oracle.trials.values()}
    assert by_status.keys() == {"COMPLETED", "FAILED"}
    assert "(stage 'probe', peak_lr=1e+38)" in by_status["FAILED"].message
    _, plan = model.best(tuner)
    assert plan.stages[0].peak_lr == 1e-2


class Infinite(keras.metrics.Metric):
    def update_state(self, *args, **kwargs):
        pass

    def result(self):
        return float("inf")


def test_a_trial_whose_objective_is_not_finite_fails_with_the_reason(tmp_path):
    def build():
        model = toys.build_model()
        model.compile("adam", model.loss, metrics=[Infinite(name="much")], run_eagerly=True)
        return model

    objective = keras_tuner.Objective("val_much", "max")
    tuner = toys.random_search(tmp_path, toys.hypermodel(build), objective=objective)
    toys.search(tuner)
    (trial,) = ktf.tuning.TuningResult(tuner).trials
    assert trial.status == "failed"
    assert trial.reason.startswith("val_much is inf after epoch 1 (stage 'probe', peak_lr=")


def test_a_fixed_part_is_the_same_in_every_trial():
    assert isinstance(toys.space(depth="all").parts["depth"], Fixed)
