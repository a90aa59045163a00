"""The scripts for clusters in docs/how-to/many-machines.md make the right `TF_CONFIG`."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "many-machines.md"

# What Slurm has and this machine lacks; `srun` runs the command as each of two tasks.
COMMANDS = {
    "scontrol": 'if [ "$1" = show ]; then echo host-2; echo host-10; else echo "$@"; fi',
    "srun": 'shift; SLURM_PROCID=0 "$@"; SLURM_PROCID=1 "$@"',
    "python": 'printf "%s\\n" "$TF_CONFIG"; exit "$CODE"',
}


@pytest.fixture
def run(tmp_path):
    for name, script in COMMANDS.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)

    def run_script(shell, script, *, code=0, **variables):
        path = f"{tmp_path}:{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "CODE": str(code), **variables}
        return subprocess.run(
            [shell, "-c", script], env=environment, capture_output=True, text=True, check=False
        )

    return run_script


def fenced(language):
    (block,) = re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), re.DOTALL)
    return block


def check_config(text, hosts, index):
    cluster = {"worker": [f"{host}:2222" for host in hosts]}
    assert json.loads(text) == {"cluster": cluster, "task": {"type": "worker", "index": index}}


def test_slurm_tasks_have_their_rank_and_the_hosts_in_slurms_order(run):
    ended = run("bash", fenced("bash"), SLURM_JOB_NODELIST="host-[2,10]", SLURM_JOB_ID="7")
    assert ended.returncode == 0, ended.stderr
    for index, line in enumerate(ended.stdout.splitlines()):
        check_config(line, ["host-2", "host-10"], index)
    assert index == 1


@pytest.mark.parametrize(("restarts", "is_requeued"), [("0", True), ("3", False)])
def test_a_slurm_job_that_fails_is_queued_again_a_few_times(run, restarts, is_requeued):
    names = {"SLURM_JOB_NODELIST": "host-[2,10]", "SLURM_JOB_ID": "7"}
    ended = run("bash", fenced("bash"), code=3, SLURM_RESTART_COUNT=restarts, **names)
    assert ended.returncode == 3
    assert ("requeue 7" in ended.stdout) == is_requeued


@pytest.mark.parametrize("index", [0, 1])
def test_kubernetes_pods_have_their_index(run, index):
    _, _, after = fenced("yaml").partition("- |\n")
    script = after.partition("volumeMounts")[0]
    ended = run("sh", script, JOB_COMPLETION_INDEX=str(index))
    check_config(ended.stdout, ["worker-0.workers", "worker-1.workers"], index)
