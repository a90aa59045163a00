"""The oracle that `Tuner` makes of any: leases, pruning and failures, without any training."""

import traceback

import grpc
import keras_tuner
import pytest

from keras_transfer.tuning import MedianPruning, SuccessiveHalving
from keras_transfer.tuning._failures import short
from keras_transfer.tuning._heartbeat import Heartbeat
from keras_transfer.tuning._leases import Leases
from keras_transfer.tuning._oracle import HEARTBEAT, make_reliable
from keras_transfer.tuning.pruning import rule_of


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def oracle(directory, pruning=None, max_trials=3, lease_s=10, cls=None, **options):
    hyperparameters = keras_tuner.HyperParameters()
    hyperparameters.Float("rate", 0, 1)
    cls = cls or keras_tuner.oracles.RandomSearchOracle
    made = cls(
        objective=keras_tuner.Objective("val_loss", "min"),
        max_trials=max_trials, hyperparameters=hyperparameters, seed=3, **options,
    )  # fmt: skip
    make_reliable(made, pruning, lease_s)
    made.leases = Leases(lease_s, Clock())
    made._set_project_dir(directory, "project")
    return made


def wait(made, seconds):
    made.leases._clock.now += seconds
    made.take_back_lost_trials()


def run(made, tuner="one", values=(0.5,), status="COMPLETED", message=None, trains=10):
    """Runs a trial as a tuner does; returns it, and the answers to its epochs."""
    trial = made.create_trial(tuner)
    answers = []
    for epoch, value in enumerate(values):
        numbers = {"val_loss": value, "trainable_parameters": trains}
        answers.append(made.update_trial(trial.trial_id, numbers, step=epoch).status)
    trial.status, trial.message = status, message
    made.end_trial(trial)
    return trial, answers


def heartbeat(made, tuner, trial):
    return made.get_trial(f"{HEARTBEAT}{tuner}\n{trial.trial_id}").status


# --- Leases -----------------------------------------------------------------------------------


def test_the_trial_of_a_worker_that_is_silent_is_run_by_another(tmp_path, capsys):
    made = oracle(tmp_path)
    dead = made.create_trial("dead")
    wait(made, 11)
    assert "has not been heard of for 10 s" in capsys.readouterr().out
    taken = made.create_trial("other")
    assert taken.trial_id == dead.trial_id
    assert taken.hyperparameters.values == dead.hyperparameters.values


def test_a_heartbeat_keeps_a_trial_through_a_long_epoch(tmp_path):
    made = oracle(tmp_path)
    trial = made.create_trial("slow")
    for _ in range(5):
        wait(made, 6)
        assert heartbeat(made, "slow", trial) == "RUNNING"
    assert made.create_trial("other").trial_id != trial.trial_id


def test_a_heart_beats_on_while_the_chief_is_started_again():
    beats = []

    class Client:
        def get_trial(self, name):
            beats.append(name)
            if len(beats) == 1:
                raise grpc.RpcError
            return keras_tuner.engine.trial.Trial(keras_tuner.HyperParameters(), status="STOPPED")

    with Heartbeat(Client(), "one", "0", seconds=0.01) as beating:
        beating._thread.join(timeout=10)
    assert beating.is_lost
    assert len(beats) == 2


def test_a_worker_that_was_taken_for_dead_is_told_so(tmp_path):
    made = oracle(tmp_path)
    trial = made.create_trial("slow")
    wait(made, 11)
    made.create_trial("other")
    assert heartbeat(made, "slow", trial) == "STOPPED"
    assert heartbeat(made, "other", trial) == "RUNNING"


def test_a_worker_that_was_started_again_rejoins_with_its_trial(tmp_path):
    made = oracle(tmp_path)
    trial = made.create_trial("one")
    made.update_trial(trial.trial_id, {"val_loss": 0.1}, step=0)
    again = made.create_trial("one")
    assert again.trial_id == trial.trial_id
    assert not again.metrics.exists("val_loss")  # it begins anew


def test_a_trial_that_kills_whoever_runs_it_fails_in_the_end(tmp_path):
    made = oracle(tmp_path)
    first = made.create_trial("one")
    for _ in range(2):
        assert made.create_trial("one").trial_id == first.trial_id or made.lost
    assert made.create_trial("one").trial_id != first.trial_id
    assert made.trials[first.trial_id].status == "FAILED"
    assert "killed 3 times (out of memory?)" in made.trials[first.trial_id].message


def test_who_has_nothing_to_do_waits_for_what_others_may_drop(tmp_path):
    made = oracle(tmp_path, max_trials=1)
    trial = made.create_trial("one")
    assert made.create_trial("two").status == "IDLE"
    assert not made.is_over()
    wait(made, 6)
    made.create_trial("two")
    wait(made, 6)  # the first one is gone
    taken = made.create_trial("two")
    assert taken.trial_id == trial.trial_id
    made.update_trial(taken.trial_id, {"val_loss": 0.1})
    taken.status = "COMPLETED"
    made.end_trial(taken)
    assert made.create_trial("two").status == "STOPPED"
    assert made.is_over()


def test_the_chief_does_not_wait_for_who_has_died(tmp_path):
    """KerasTuner's own waits for ever."""
    made = oracle(tmp_path, max_trials=1)
    run(made, "one")
    made.create_trial("dead").status  # noqa: B018
    made.tuner_ids.add("dead")
    assert made.create_trial("one").status == "STOPPED"
    assert not made.is_over()
    wait(made, 11)
    assert made.is_over()


# --- Failures ---------------------------------------------------------------------------------


def test_too_many_failures_in_a_row_end_the_search_for_everybody(tmp_path):
    made = oracle(tmp_path, max_trials=9, max_consecutive_failed_trials=2)
    run(made, status="FAILED", message="no memory")
    run(made)
    run(made, status="FAILED", message="loss is nan")
    assert not made.failure
    run(made, status="FAILED", message="no memory")
    assert "2 trials in a row failed" in made.failure
    assert made.failure.endswith("trial 2: loss is nan; trial 3: no memory")
    for tuner in ("one", "two"):
        assert made.create_trial(tuner).status == "STOPPED"
    assert made.is_over()


def test_a_trial_that_is_tried_again_has_not_ended(tmp_path):
    made = oracle(tmp_path, max_retries_per_trial=1)
    ended = []
    made.on_trial_ended = lambda trial: ended.append(trial.status)
    run(made, status="INVALID", message="no memory")
    assert not ended
    run(made, status="INVALID", message="no memory")
    assert ended == ["FAILED"]


def test_the_reason_is_the_first_line_of_the_last_error():
    try:
        try:
            raise OSError("first")
        except OSError as error:
            raise RuntimeError("no memory\n\nHint: less\n [Op:MatMul]") from error
    except RuntimeError:
        assert short(traceback.format_exc()) == "RuntimeError: no memory"
    try:
        raise keras_tuner.errors.FailedTrialError("loss is nan")
    except keras_tuner.errors.FailedTrialError:
        assert short(traceback.format_exc()) == "loss is nan"


def test_pruned_trials_are_no_failures_and_never_the_best(tmp_path):
    made = oracle(tmp_path, max_trials=9, max_consecutive_failed_trials=2)
    for _ in range(3):
        run(made, values=[0.01], status="STOPPED", message="worse")
    best, _ = run(made, values=[0.4])
    assert not made.failure
    assert made.get_best_trials(1)[0].trial_id == best.trial_id


# --- Pruning ----------------------------------------------------------------------------------


def test_a_trial_is_compared_in_the_same_stage_only(tmp_path):
    made = oracle(tmp_path, MedianPruning(min_trials=2), max_trials=9)
    for _ in range(2):
        run(made, values=[0.5, 0.4, 0.3], trains=10)
    # Much worse than those, in a stage where more trains: nothing to compare with.
    assert run(made, values=[0.9, 0.9], trains=99)[1] == ["RUNNING", "RUNNING"]
    assert run(made, values=[0.9, 0.3], trains=10)[1] == ["STOPPED", "RUNNING"]
    assert run(made, values=[0.45, 0.9], trains=10)[1] == ["RUNNING", "RUNNING"]
    run(made, values=[0.8], trains=99)
    assert run(made, values=[0.95], trains=99)[1] == ["STOPPED"]


def test_successive_halving_lets_one_of_so_many_pass_a_rung():
    rule = SuccessiveHalving(factor=3, min_epochs=2)
    others = [[0.1, 0.2, 0.3], [0.1, 0.5, 0.6], [0.3, 0.4, 0.4], [0.0, 0.1, 0.1]]
    assert not rule.is_hopeless([0.0], others)  # no rung
    assert rule.is_hopeless([0.3, 0.4], others)
    assert not rule.is_hopeless([0.3, 0.55], others)
    assert not rule.is_hopeless([0.0, 0.0, 0.0], others)
    assert rule.is_hopeless([0.0] * 6, [[0.1] * 6] * 3)
    assert not rule.is_hopeless([0.0, 0.0], others[:1])


def test_a_rule_is_known_by_its_name():
    assert isinstance(rule_of("median"), MedianPruning)
    assert rule_of(None) is None
    with pytest.raises(ValueError, match="Did you mean 'median'"):
        rule_of("medain")
    with pytest.raises(TypeError, match="`pruning` must be 'median'"):
        rule_of(3)


# --- Files ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "cls",
    [
        keras_tuner.oracles.RandomSearchOracle,
        keras_tuner.oracles.BayesianOptimizationOracle,
        keras_tuner.oracles.GridSearchOracle,
    ],
)
@pytest.mark.parametrize("torn", ["oracle.json", "trial_0/trial.json", "trial_1/trial.json"])
def test_a_torn_file_is_restored_from_its_last_whole_copy(torn, cls, tmp_path):
    made = oracle(tmp_path, cls=cls)
    first, _ = run(made, values=[0.4])
    second = made.create_trial("one")
    path = tmp_path / "project" / torn
    path.write_text(path.read_text()[: path.stat().st_size // 2])
    again = oracle(tmp_path, cls=cls)
    with pytest.warns(UserWarning, match="is damaged. The search goes on from the last whole copy"):
        again.reload()
    assert again.trials[first.trial_id].status == "COMPLETED"
    assert again.trials[first.trial_id].score == 0.4
    trial = again.create_trial("one")
    assert trial.trial_id == second.trial_id
    assert trial.hyperparameters.values == second.hyperparameters.values
    again.reload()  # what was damaged has been mended


def of_hyperband(directory):
    hyperparameters = keras_tuner.HyperParameters()
    hyperparameters.Float("rate", 0, 1)
    made = keras_tuner.oracles.HyperbandOracle(
        keras_tuner.Objective("val_loss", "min"), max_epochs=2, factor=2, seed=3,
        hyperparameters=hyperparameters,
    )  # fmt: skip
    make_reliable(made, None, 10)
    made._set_project_dir(directory, "project")
    return made


@pytest.mark.parametrize("make", [lambda folder: oracle(folder, max_trials=4), of_hyperband])
def test_a_trial_whose_file_and_copy_are_damaged_counts_as_failed(make, tmp_path):
    """Left out, it would free its number for another trial, over the files of the last one."""
    made = make(tmp_path)
    lost, kept = (run(made, values=[value])[0] for value in (0.1, 0.2))
    for path in (tmp_path / "project" / f"trial_{lost.trial_id}").glob("trial.json*"):
        path.write_text("{")
    again = make(tmp_path)
    with pytest.warns(UserWarning, match="damaged, and so is its copy. The trial counts as failed"):
        again.reload()
    while run_next(again):
        pass
    assert again.trials[lost.trial_id].status == "FAILED"
    assert "is gone or was damaged" in again.trials[lost.trial_id].message
    assert again.trials[kept.trial_id].score == 0.2
    assert len(again.trials) == len(again.end_order) == 4


def run_next(made):
    """Runs a trial, unless there is none left; returns whether there was one."""
    trial = made.create_trial("one")
    if trial.status == "STOPPED":
        return False
    made.update_trial(trial.trial_id, {"val_loss": 0.5})
    trial.status = "COMPLETED"
    made.end_trial(trial)
    return True


def test_a_search_whose_files_are_gone_for_good_says_so(tmp_path):
    made = oracle(tmp_path)
    run(made)
    for path in (tmp_path / "project").glob("oracle.json*"):
        path.write_text("{")
    with pytest.raises(ValueError, match=r"cannot go on: .*oracle.json is damaged, and so is its"):
        oracle(tmp_path).reload()


def test_plain_keras_tuner_reads_what_is_written_and_dies_of_a_torn_file(tmp_path):
    made = oracle(tmp_path)
    run(made, values=[0.4])
    plain = keras_tuner.oracles.RandomSearchOracle("val_loss", max_trials=3)
    plain._set_project_dir(tmp_path, "project")
    plain.reload()
    assert plain.trials["0"].score == 0.4
    path = tmp_path / "project" / "oracle.json"
    path.write_text(path.read_text()[:100])
    with pytest.raises(ValueError, match="line 1"):  # a JSONDecodeError
        plain.reload()
