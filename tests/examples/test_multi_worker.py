import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from examples.multi_worker import launch, train

SHORT = ("--source-epochs", "1", "--epochs", "1")


@pytest.mark.distributed
def test_two_local_workers_come_to_the_numbers_of_one_process(tmp_path, capfd):
    assert launch.main(["--directory", str(tmp_path / "two"), "--timeout", "240", *SHORT]) == 0
    train.main(["--directory", str(tmp_path / "one"), *SHORT])
    lines = [line for line in capfd.readouterr().out.splitlines() if line.startswith("{")]
    two, one = map(json.loads, lines)
    assert (two["replicas"], one["replicas"]) == (2, 1)
    np.testing.assert_allclose(two["losses"], one["losses"], atol=1e-4)
    np.testing.assert_allclose(two["test_loss"], one["test_loss"], atol=1e-4)
    assert list((tmp_path / "two").iterdir()), "the chief has written checkpoints"


# Stands in for train.py: the chief sleeps, the other fails where it is told to.
WORKER = """
import json, os, pathlib, sys, time
folder = pathlib.Path(sys.argv[1])
pid = folder / "chief"
if json.loads(os.environ["TF_CONFIG"])["task"]["index"] == 0:
    pid.with_name("new").write_text(str(os.getpid()))
    pid.with_name("new").rename(pid)
elif sys.argv[2] == "fail":
    while not pid.exists():
        time.sleep(0.01)
    sys.exit(3)
time.sleep(30)
"""
LAUNCH = """
import pathlib, sys
from examples.multi_worker import launch
launch.TRAIN = pathlib.Path(sys.argv[1])
sys.exit(launch.main(sys.argv[2:]))
"""


@pytest.fixture
def worker(tmp_path):
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    return script


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def end(pid):
    """Ends a worker that should have been ended, and says whether it had to be."""
    was_running = is_running(pid)
    if was_running:
        os.kill(pid, signal.SIGKILL)
    return was_running


def test_a_worker_that_fails_ends_the_others(worker, tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "TRAIN", worker)
    assert launch.main(["--timeout", "20", str(tmp_path), "fail"]) == 3
    assert not end(int((tmp_path / "chief").read_text()))


def test_a_launcher_that_is_told_to_end_leaves_no_worker(worker, tmp_path):
    command = [sys.executable, "-c", LAUNCH, str(worker), str(tmp_path), "sleep"]
    with subprocess.Popen(command) as launcher:
        for _ in range(2000):
            if (tmp_path / "chief").exists():
                break
            time.sleep(0.01)
        launcher.terminate()
        assert launcher.wait(20) != 0
    assert not end(int((tmp_path / "chief").read_text()))
