"""Searches that are interrupted, killed and damaged, and workers that die: real processes."""

import re

import pytest

from keras_transfer.tuning._state_files import read_state
from tests.processes import Child
from tests.tuning import scenarios, toys
from tests.workers import free_ports


def role(name, port):
    return {
        "KERASTUNER_TUNER_ID": name,
        "KERASTUNER_ORACLE_IP": "127.0.0.1",
        "KERASTUNER_ORACLE_PORT": str(port),
    }


def trials_of(directory):
    return [read_state(p) for p in sorted((directory / "search").glob("trial_*/trial.json"))]


def run_together(folder, scenarios):
    """Runs scenarios at the same time; returns exit codes and all that they printed."""
    children = {}
    for name, directory, environment in scenarios:
        (folder / directory).mkdir(parents=True, exist_ok=True)
        log = folder / directory / f"{environment.get('KERASTUNER_TUNER_ID', name)}.log"
        arguments = ("tests.tuning.scenarios", name, folder / directory)
        children[name] = Child(*arguments, environment=environment, log=log)
    codes = {name: child.wait(timeout=300) for name, child in children.items()}
    return codes, "\n".join(path.read_text() for path in folder.rglob("*.log"))


@pytest.mark.slow
def test_a_search_that_was_interrupted_and_killed_runs_only_the_broken_trial_again(tmp_path):
    codes, logs = run_together(
        tmp_path,
        [("interrupted_and_killed", "broken", {}), ("unbroken", "unbroken", {})],
    )
    assert codes == {"interrupted_and_killed": -9, "unbroken": 0}, logs
    log = (tmp_path / "broken" / "interrupted_and_killed.log").read_text()
    assert "Run the same command to go on" in log
    assert log.count("Trial 1 of 4") == log.count("Trial 2 of 4") == 1
    seen = toys.Seen()
    tuner = toys.search(scenarios.tuner(tmp_path / "broken"), callbacks=[seen])
    assert len(seen.seen) == 2 * 2  # the third trial, which was broken, and the fourth
    assert tuner.oracle.lost == {"2": 1}
    unbroken = [trial["score"] for trial in trials_of(tmp_path / "unbroken")]
    assert toys.scores(tuner) == pytest.approx(unbroken, rel=1e-5)
    assert len({round(score, 5) for score in unbroken}) == 4


@pytest.mark.distributed
@pytest.mark.exhaustive
def test_a_dead_workers_trial_is_run_by_another_and_the_chief_ends(tmp_path):
    (port,) = free_ports(1)
    codes, logs = run_together(
        tmp_path,
        [
            ("chief", "together", role("chief", port)),
            ("dying_worker", "together", role("worker-1", port)),
            ("slow_worker", "together", role("worker-2", port)),
            ("unbroken", "unbroken", {}),
        ],
    )
    assert codes["dying_worker"] == -9, logs
    assert codes["chief"] == codes["slow_worker"] == 0, logs
    together = trials_of(tmp_path / "together")
    assert [trial["status"] for trial in together] == ["COMPLETED"] * 4
    log = (tmp_path / "together" / "chief.log").read_text()
    assert "Worker 'worker-1' has not been heard of for 5 s" in log
    assert "worker-2' has not been heard of" not in log  # whose epoch took 11 s
    assert "Trial 4 of 4: val_loss" in log
    assert (tmp_path / "together" / "worker-2.log").read_text().count("completed  0.") == 4
    # Under two replicas, and on whichever worker: the scores of one process.
    scores = [trial["score"] for trial in together]
    unbroken = [trial["score"] for trial in trials_of(tmp_path / "unbroken")]
    assert scores == pytest.approx(unbroken, rel=1e-4)


@pytest.mark.distributed
@pytest.mark.exhaustive
def test_hyperband_over_workers_one_of_which_stalls_promotes_trials_with_their_state(tmp_path):
    (port,) = free_ports(1)
    codes, logs = run_together(
        tmp_path,
        [
            ("hyperband_chief", "together", role("chief", port)),
            ("stalled_hyperband_worker", "together", role("worker-1", port)),
            ("hyperband_worker", "together", role("worker-2", port)),
        ],
    )
    assert set(codes.values()) == {0}, logs
    trials = {trial["trial_id"]: trial for trial in trials_of(tmp_path / "together")}
    assert {trial["status"] for trial in trials.values()} == {"COMPLETED"}
    steps = []
    for trial in trials.values():
        values = trial["hyperparameters"]["values"]
        epochs = range(values["tuner/initial_epoch"], values["tuner/epochs"])
        seen = trial["metrics"]["metrics"]["val_loss"]["observations"]
        assert [each["step"] for each in seen] == [*epochs]  # each epoch was reported once
        if "tuner/trial_id" in values:
            before = trials[values["tuner/trial_id"]]["hyperparameters"]["values"]
            assert before["tuner/epochs"] == values["tuner/initial_epoch"] > 0
        steps.append(3 * values["tuner/initial_epoch"])
    assert max(steps) > 0
    logged = "\n".join((tmp_path / "together" / f"worker-{n}.log").read_text() for n in (1, 2))
    found = sorted(int(step) for step in re.findall(r"Begins at step (\d+)", logged))
    assert found == sorted([0, *steps])  # the stalled trial was begun twice
    assert "this worker was not heard of for 5 s, and another one runs the trial." in logged
