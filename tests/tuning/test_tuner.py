import multiprocessing
import pathlib
import random
import re
import sys
import types

import keras
import keras_tuner
import numpy as np
import pytest
import tensorflow as tf

from keras_transfer import tuning
from keras_transfer._checkpoint_files import CheckpointFiles
from keras_transfer.tuning import _isolated
from keras_transfer.tuning._failures import short
from keras_transfer.tuning.pruning import Pruning
from tests.tuning import scenarios, test_survival, toys


@pytest.fixture(autouse=True)
def first_trial_of_the_process():
    scenarios.At.begun = 0


def tune(directory, **options):
    given = {
        "validation_data": toys.data(16, seed=1), "search_space": toys.space(), "batch_size": 8,
        "directory": directory, "oracle": "random", "pruning": None, "seed": 3, "verbose": 0,
    }  # fmt: skip
    return tuning.tune(toys.build_model, toys.data(), **{**given, **options})


def tuner(directory, hypermodel=None, oracle=None, max_trials=1, **options):
    oracle = oracle or keras_tuner.oracles.RandomSearchOracle("val_loss", max_trials, seed=3)
    return tuning.Tuner(hypermodel or toys.hypermodel(), oracle, directory=directory, **options)


def kept(made, trial_id="0"):
    directory = f"{made.get_trial_dir(trial_id)}/best_weights"
    return CheckpointFiles(directory, keep=1).newest()[0]


def no_memory():
    raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")


def wrong():
    raise KeyError("no such thing")


# --- One line ---------------------------------------------------------------------------------


def test_a_search_in_one_line_has_everything_in_its_result(tmp_path, capsys):
    failing = [scenarios.At({2: no_memory, 3: wrong})]
    result = tune(
        tmp_path, max_trials=4, callbacks=failing, search_space=toys.two_stages(), verbose=1
    )
    lines = re.findall(r"Trial \d of 4: .*", capsys.readouterr().out)
    assert len(lines) == 4
    assert re.match(
        r"Trial 1 of 4: val_accuracy 0.\d+ in epoch \d of 2, stage '(probe|all)'. "
        r"Best 0.\d+ \(trial 0\). About \d+ s left.",
        lines[0],
    )
    assert "Trial 2 of 4: failed, ResourceExhaustedError: " in lines[1]
    # The table: the best first, failures last, with their reasons.
    assert [t.status for t in result.trials] == ["completed"] * 2 + ["failed"] * 2
    assert result.trials[0].score >= result.trials[1].score
    header, _, *rows = result.table().splitlines()
    assert header.split() == [
        "trial", "status", "val_accuracy", "epoch", "stage", "head_lr", "stage_2_lr_ratio",
        "reason",
    ]  # fmt: skip
    assert "OOM when allocating tensor" in rows[2]
    assert rows[3].endswith("KeyError: 'no such thing'")
    # The best model is the one that had the score.
    _, accuracy = result.best_model.evaluate(*toys.data(16, seed=1), verbose=0)
    assert accuracy == pytest.approx(result.trials[0].score)
    assert result.best_model is result.best_model
    best = result.best_hyperparameters
    assert result.best_plan.stages[0].peak_lr == best["head_lr"]
    assert result.trials[0].values == best
    # The pictures: one for the trials, one for each parameter.
    axes = result.plot()
    assert [ax.get_xlabel() for ax in axes] == ["trial", "head_lr", "stage_2_lr_ratio"]
    assert [ax.get_xscale() for ax in axes] == ["linear", "log", "log"]
    (best_line,) = [line for line in axes[0].lines if line.get_label() == "best trial"]
    assert list(best_line.get_xdata()) == [int(result.trials[0].trial_id)]
    assert {label.get_text() for label in axes[0].get_legend().get_texts()} == {
        "best so far", "completed", "best trial", "failed",
    }  # fmt: skip
    # The same line again comes back at once, with the same result.
    again = tune(tmp_path, max_trials=4, search_space=toys.two_stages(), verbose=1)
    assert "Trial" not in capsys.readouterr().out
    assert again.trials == result.trials


@pytest.mark.exhaustive
def test_too_many_failures_in_a_row_end_the_search_with_their_reasons(tmp_path):
    failing = [scenarios.At({1: wrong, 2: no_memory})]
    with pytest.raises(RuntimeError, match=r"trial 0: KeyError: .*; trial 1: ResourceExhausted"):
        tune(tmp_path, max_trials=9, callbacks=failing, max_consecutive_failed_trials=2)
    # When what was wrong is mended, the search goes on.
    result = tune(tmp_path, max_trials=3, max_consecutive_failed_trials=2)
    assert [t.status for t in result.trials] == ["completed", "failed", "failed"]


def test_a_model_that_is_too_large_fails_its_trial(tmp_path):
    made = toys.search(tuner(tmp_path, max_model_size=5))
    (trial,) = made.oracle.trials.values()
    assert trial.status == "FAILED"
    assert short(trial.message) == (
        "Oversized model: 218 parameters. The limit is max_model_size=5, and what is frozen does "
        "not count."
    )


def test_a_model_that_is_too_large_fails_in_a_process_of_its_own_too(tmp_path):
    job = {
        "build_model": toys.build_model, "search_space": toys.space(), "cache": None, "seed": 1,
        "policy": "float32", "project_dir": tmp_path, "trial_id": "0", "objective": None,
        "hp": keras_tuner.HyperParameters().get_config(), "max_model_size": 5,
        "backbone_digests": [], "builds_alike": True,
    }  # fmt: skip
    with pytest.raises(keras_tuner.errors.FailedTrialError, match="The limit is max_model_size=5"):
        _isolated._train_in_child(None, job)


def test_a_search_that_was_killed_in_its_first_trial_has_lost_that_one(tmp_path):
    """KerasTuner takes the project for new, so that such a trial would kill for ever."""
    tuner(tmp_path).oracle.create_trial("tuner0")
    again = tuner(tmp_path).oracle
    assert again.lost == {"0": 1}
    assert again.create_trial("tuner0").trial_id == "0"


def test_a_worker_has_the_result_from_the_files_when_its_chief_is_gone(tmp_path, monkeypatch):
    chief = tuner(tmp_path).oracle
    trial = chief.create_trial("worker-1")
    chief.update_trial(trial.trial_id, {"val_loss": 0.25})
    trial.status = "COMPLETED"
    chief.end_trial(trial)
    for name, value in test_survival.role("worker-1", 1).items():
        monkeypatch.setenv(name, value)
    worker = tuner(tmp_path)
    worker._read_project()
    (found,) = tuning.TuningResult(worker).trials
    assert (found.status, found.score) == ("completed", 0.25)


class Stalls(keras.callbacks.Callback):
    """Stops its worker for longer than the lease, before the first epoch is reported."""

    def __init__(self, made):
        super().__init__()
        self.made = made

    def __deepcopy__(self, memo):
        return self

    def on_epoch_end(self, epoch, logs=None):
        oracle = self.made.oracle
        oracle.leases.renew("other")
        oracle.leases._heard[self.made.tuner_id] -= 1e6
        oracle.take_back_lost_trials()
        self.taken = oracle.create_trial("other")


def test_a_worker_that_wakes_after_its_lease_reports_and_keeps_nothing(tmp_path, capsys):
    made = tuner(tmp_path)
    made.is_worker = True
    trial = made.oracle.create_trial(made.tuner_id)
    x, y = toys.data()
    stalls = Stalls(made)
    made._run_and_end(
        trial,
        {"x": x, "y": y, "validation_data": toys.data(16, seed=1), "callbacks": [stalls]},
    )
    assert stalls.taken.trial_id == trial.trial_id
    now = made.oracle.trials[trial.trial_id]
    assert now.status == "RUNNING"
    assert not now.metrics.exists("val_loss")
    assert list(made.oracle.ongoing_trials) == ["other"]
    assert not list(pathlib.Path(made.get_trial_dir(trial.trial_id)).glob("best_weights/*"))
    assert "Trial 0: this worker was not heard of for 120 s" in capsys.readouterr().out


def test_several_objectives_are_one_sum(tmp_path):
    oracle = keras_tuner.oracles.RandomSearchOracle(
        ["val_loss", keras_tuner.Objective("val_accuracy", "max")], max_trials=1
    )
    made = tuner(tmp_path, oracle=oracle)
    trial = oracle.create_trial("tuner0")
    made._report(trial.trial_id, 0, {"val_loss": 0.5, "val_accuracy": 0.75}, may_prune=False)
    trial.status = "COMPLETED"
    oracle.end_trial(trial)
    assert oracle.get_best_trials(1)[0].score == -0.25


# --- Pruning ----------------------------------------------------------------------------------


class Always(Pruning):
    def is_hopeless(self, own, others):
        return True


def test_pruned_trials_end_early_and_are_no_failures(tmp_path):
    seen = toys.Seen(lambda model: int(model.optimizer.iterations))
    result = tune(
        tmp_path, max_trials=2, pruning=Always(), max_consecutive_failed_trials=1,
        search_space=toys.space(epochs=3), callbacks=[seen],
    )  # fmt: skip
    assert [t.status for t in result.trials] == ["pruned"] * 2
    assert [steps for (steps,) in seen.seen[1::2]] == [3, 3]  # one epoch of three
    assert result.trials[0].reason == "worse than others after epoch 1"
    for what in ("best_model", "best_hyperparameters"):
        with pytest.raises(ValueError, match="No trial was completed"):
            getattr(result, what)
    with pytest.raises(ValueError, match="nothing to draw"):
        result.plot()


@pytest.mark.exhaustive
def test_hyperband_goes_on_from_the_last_epoch_here_too(tmp_path):
    seen = toys.Seen(lambda model: int(model.optimizer.iterations))
    oracle = keras_tuner.oracles.HyperbandOracle("val_loss", max_epochs=2, factor=2, seed=3)
    made = toys.search(tuner(tmp_path, oracle=oracle), callbacks=[seen])
    begins = [steps for (steps,) in seen.seen[::2]]
    assert sorted(begins)[-2:] == [0, 3]  # one was promoted, after one epoch of three steps
    assert {t.status for t in made.oracle.trials.values()} == {"COMPLETED"}
    with pytest.raises(ValueError, match="Hyperband ends hopeless trials itself"):
        tuner(tmp_path, oracle=oracle, pruning="median")


# --- What is kept -----------------------------------------------------------------------------


@pytest.mark.exhaustive
def test_a_frozen_backbone_is_not_written(tmp_path):
    made = toys.search(tuner(tmp_path))
    state = kept(made)
    assert any("head/output/kernel" in name for name in state["changed"])
    assert not any("body/" in name for name in state["changed"])
    assert sum("body/" in name for name in state["left_out"]) == 6
    trial = made.oracle.get_best_trials()[0]
    loss, _ = made.get_best_models()[0].evaluate(*toys.data(16, seed=1), verbose=0)
    assert loss == pytest.approx(trial.score, rel=1e-6)
    # Another backbone than in the search would be another model, without a word.
    made.hypermodel.build_model = lambda: toys.build_model(toys.backbone(stddev=0.6))
    with pytest.raises(ValueError, match="`build_model` returns another model than in the search"):
        made.get_best_models()


def test_damaged_weights_are_named_with_what_to_do(tmp_path):
    made = toys.search(tuner(tmp_path))
    (path,) = pathlib.Path(made.get_trial_dir("0"), "best_weights").glob("checkpoint-*")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"trial_0 has kept are damaged.*hypermodel\.plan\("):
        made.get_best_models()
    assert made.hypermodel.plan(made.get_best_hyperparameters()[0]).total_epochs == 2


@pytest.mark.exhaustive
def test_all_is_kept_where_each_build_has_other_weights(tmp_path):
    def build():
        layers = [keras.layers.Dense(8, "tanh", name=name) for name in toys.NAMES]
        return toys.build_model(keras.Sequential([keras.Input((6,)), *layers], name="body"))

    made = toys.search(tuner(tmp_path, toys.hypermodel(build, seed=None)))
    assert sum("body/" in name for name in kept(made)["changed"]) == 6
    loss, _ = made.get_best_models()[0].evaluate(*toys.data(16, seed=1), verbose=0)
    assert loss == pytest.approx(made.oracle.get_best_trials()[0].score, rel=1e-6)


# --- Processes of their own -------------------------------------------------------------------


@pytest.mark.exhaustive
def test_a_trial_in_a_process_of_its_own_may_be_killed_and_scores_the_same(tmp_path):
    given = [KilledIfFirst(tmp_path / "mark"), keras.callbacks.TensorBoard(tmp_path / "logs")]
    result = tune(tmp_path / "a", max_trials=2, isolate_trials=True, callbacks=given)
    assert [t.status for t in result.trials] == ["completed", "failed"]
    assert "was killed by SIGKILL (out of memory?)" in result.trials[1].reason
    assert len(list((tmp_path / "a" / "fine_tuning" / "features").glob("*"))) == 2
    # The build there was found to be the one here, so the frozen backbone was left out.
    assert sum("body/" in name for name in kept(result.tuner, "1")["left_out"]) == 6
    written = b"".join(path.read_bytes() for path in (tmp_path / "logs").rglob("*tfevents*"))
    assert b"_hparams_/session_start_info" in written
    plain = tune(tmp_path / "b", max_trials=2)
    by_id = {t.trial_id: t for t in plain.trials}
    assert result.trials[0].values == by_id["1"].values
    assert result.trials[0].score == pytest.approx(by_id["1"].score)
    np.testing.assert_allclose(
        result.best_model.head.get_weights()[0],
        plain.tuner.load_model(plain.tuner.oracle.trials["1"]).head.get_weights()[0],
        rtol=1e-5,
    )


class KilledIfFirst(keras.callbacks.Callback):
    """Kills the process of the first trial in its first epoch."""

    def __init__(self, mark):
        super().__init__()
        self.mark = mark

    def on_epoch_begin(self, epoch, logs=None):
        if not self.mark.exists():
            self.mark.touch()
            scenarios.kill()


# --- Bad input --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation_data": None}, "there is no validation data"),
        ({"objective": "val_acc"}, "the model does not report it. Did you mean 'val_accuracy'"),
        (
            {"objective": keras_tuner.Objective("val_acc", "max")},
            "the model does not report it. Did you mean 'val_accuracy'",
        ),
        ({"oracle": "bayes"}, "Did you mean 'bayesian'"),
        ({"pruning": "medain"}, "Did you mean 'median'"),
        ({"max_trials": 0}, "`max_trials` must be at least 1"),
        ({"lease_s": 0}, "`lease_s` must be finite and above 0"),
        ({"search_space": toys.space(depth=9)}, "depth=9, and the model has 4 layer groups"),
    ],
)
def test_what_cannot_be_searched_is_an_error_before_the_first_trial(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        tune(tmp_path, **options)
    assert not list(tmp_path.rglob("trial_*"))


def test_a_worker_may_not_delete_the_project_that_its_chief_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("KERASTUNER_ORACLE_IP", "127.0.0.1")
    monkeypatch.setenv("KERASTUNER_TUNER_ID", "worker-1")
    (tmp_path / "untitled_project").mkdir()
    with pytest.raises(ValueError, match="overwrite=True in a worker would delete the project"):
        tuner(tmp_path, overwrite=True)
    assert (tmp_path / "untitled_project").exists()


def test_what_cannot_be_handed_to_another_process_is_an_error(tmp_path):
    made = tuner(tmp_path, toys.hypermodel(lambda: toys.build_model()), isolate_trials=True)
    with pytest.raises(ValueError, match="Define it at the top of a module or script"):
        toys.search(made)
    x, y = toys.data()
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
    with pytest.raises(ValueError, match="arrays, or a function that returns the data"):
        toys.search(tuner(tmp_path, isolate_trials=True), x=dataset, y=None, batch_size=None)
    unknown = keras.callbacks.LambdaCallback(on_epoch_end=lambda *args: None)
    with pytest.raises(ValueError, match="`callbacks` is handed to other processes, and that"):
        toys.search(tuner(tmp_path, isolate_trials=True), callbacks=[unknown])
    with pytest.raises(ValueError, match="compile in `build_model`"):
        tuner(tmp_path, isolate_trials=True, loss="mse")
    with pytest.raises(ValueError, match="make it in `build_model`"):
        tuner(tmp_path, isolate_trials=True, distribution_strategy=tf.distribute.get_strategy())


def test_a_script_that_would_search_again_in_its_trials_is_an_error(tmp_path, monkeypatch):
    """What `spawn` sets while it imports the script in the trial's process."""
    monkeypatch.setattr(multiprocessing.current_process(), "_inheriting", True, raising=False)
    with pytest.raises(RuntimeError, match="under `if __name__ == '__main__':`"):
        tuner(tmp_path, isolate_trials=True, overwrite=True)


def test_what_was_defined_in_a_notebook_is_an_error(monkeypatch):
    def build():
        raise AssertionError

    build.__qualname__, build.__module__ = "build", "__main__"
    monkeypatch.setitem(sys.modules, "__main__", types.ModuleType("__main__"))
    with pytest.raises(ValueError, match="a notebook or typed at a prompt"):
        _isolated.check(toys.hypermodel(build), {})


def test_a_process_that_dies_while_it_is_answered_is_lost():
    class Killed:
        exitcode = -9

        def join(self, timeout):
            pass

    ours, theirs = multiprocessing.Pipe()
    theirs.send(("epoch", 0, {}))
    theirs.close()
    with pytest.raises(_isolated.LostTrialError, match="was killed by SIGKILL"):
        _isolated._listen(ours, Killed(), lambda *args: True)


def test_what_is_no_hypermodel_and_no_oracle_is_an_error(tmp_path):
    with pytest.raises(TypeError, match="`hypermodel` must be a `FineTuningHyperModel`"):
        tuning.Tuner(toys.build_model, keras_tuner.oracles.RandomSearchOracle("val_loss"))
    with pytest.raises(TypeError, match="`oracle` must be one of KerasTuner's oracles"):
        tuning.Tuner(toys.hypermodel(), "bayesian")


def test_private_names_of_keras_tuner_are_where_they_were():
    """What `Tuner` and its oracle override or call, and KerasTuner does not document."""
    from keras_tuner.src import protos
    from keras_tuner.src.distribute import oracle_chief

    for name in ("_try_build", "_deepcopy_callbacks", "_configure_tensorboard_dir"):
        assert callable(getattr(keras_tuner.Tuner, name))
    assert callable(keras_tuner.Tuner._get_tuner_fname)
    oracle = keras_tuner.Oracle("val_loss")
    for name in ("_save_trial", "_check_consecutive_failures", "_get_oracle_fname"):
        assert callable(getattr(oracle, name))
    for name in ("_display", "_retry_queue", "tuner_ids", "ongoing_trials", "end_order"):
        assert hasattr(oracle, name)
    assert callable(protos.get_service_grpc().add_OracleServicer_to_server)
    assert callable(oracle_chief.OracleServicer)


@pytest.mark.exhaustive
def test_a_seed_of_0_makes_the_oracle_repeat_itself(tmp_path):
    rates = []
    for number in range(2):
        random.seed(number)  # KerasTuner draws a seed from here when it has none
        found = tune(tmp_path / str(number), seed=0, objective="val_loss", max_trials=1)
        rates.append(found.best_hyperparameters["head_lr"])
    assert rates[0] == rates[1]
