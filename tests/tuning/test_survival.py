"""Searches that are interrupted, killed and damaged, and workers that die: real processes."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import pytest

from keras_transfer.tuning._state_files import read_state
from tests.tuning import scenarios, toys

ROOT = pathlib.Path(__file__).parents[2]


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def role(name, port):
    return {
        "KERASTUNER_TUNER_ID": name,
        "KERASTUNER_ORACLE_IP": "127.0.0.1",
        "KERASTUNER_ORACLE_PORT": str(port),
    }


def trials_of(directory):
    return [read_state(p) for p in sorted((directory / "search").glob("trial_*/trial.json"))]


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    """All scenarios in forks of one process; returns folder and exit codes."""
    folder = tmp_path_factory.mktemp("searches")
    port = free_port()
    groups = [
        [
            ("interrupted_and_killed", "alone", {}),
            ("chief", "together", role("chief", port)),
            ("dying_worker", "together", role("worker-1", port)),
            ("slow_worker", "together", role("worker-2", port)),
        ]
    ]
    result = subprocess.run(
        [sys.executable, "-m", "tests.tuning.forks", str(folder)],
        input=json.dumps(groups),
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"},
        timeout=300,
        check=False,
    )
    logs = "\n".join(path.read_text() for path in folder.rglob("*.log"))
    assert result.returncode == 0, result.stderr + logs
    return folder, json.loads(result.stdout.splitlines()[-1]), logs


@pytest.mark.slow
def test_a_search_that_was_interrupted_and_killed_runs_only_the_broken_trial_again(processes):
    folder, codes, logs = processes
    assert codes["interrupted_and_killed"] == -9, logs
    log = (folder / "alone" / "interrupted_and_killed.log").read_text()
    assert "Run the same command to go on" in log
    assert log.count("Trial 1 of 4") == log.count("Trial 2 of 4") == 1
    seen = toys.Seen()
    tuner = toys.search(scenarios.tuner(folder / "alone"), callbacks=[seen])
    assert len(seen.seen) == 2 * 2  # the third trial, which was broken, and the fourth
    assert tuner.oracle.lost == {"2": 1}
    # Whatever happened to it, and to the search on two workers: the same four scores.
    together = [trial["score"] for trial in trials_of(folder / "together")]
    assert toys.scores(tuner) == pytest.approx(together, rel=1e-4)
    assert len({round(score, 5) for score in together}) == 4


@pytest.mark.slow
@pytest.mark.distributed
def test_a_dead_workers_trial_is_run_by_another_and_the_chief_ends(processes):
    folder, codes, logs = processes
    assert codes["dying_worker"] == -9, logs
    assert codes["chief"] == codes["slow_worker"] == 0, logs
    assert [trial["status"] for trial in trials_of(folder / "together")] == ["COMPLETED"] * 4
    log = (folder / "together" / "chief.log").read_text()
    assert "Worker 'worker-1' has not been heard of for 5 s" in log
    assert "worker-2' has not been heard of" not in log  # whose epoch took 11 s
    assert "Trial 4 of 4: val_loss" in log
