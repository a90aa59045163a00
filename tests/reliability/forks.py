"""Runs trainings in forks of a process that has imported everything and done nothing.

Started as `python -m tests.reliability.forks FOLDER < trials.json`; two forks run at a time.
Importing takes seconds and forking nothing, but a fork after TensorFlow's first operation
hangs: this process never does one.
"""

import json
import os
import pathlib
import sys

import numpy as np

from tests.reliability import runs

AT_ONCE = 2


def attempt(trial, path):
    """Runs a trial in this process, which may be killed by it, and writes what it ends with."""
    callbacks = []
    if "step" in trial:
        callbacks = [runs.KilledAt(*trial["step"])]
    elif "write" in trial:
        runs.WhileWriting(*trial["write"])
    end = runs.run(trial["run"], path / "checkpoints", callbacks)
    np.savez(path / "end.npz", **end)


def fork(trial, path):
    """Forks a process for a trial and returns its process id."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        with open(path / "log.txt", "a") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            attempt(trial, path)
            code = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main(folder):
    """Runs each trial to its end: killed, and then again without anything that kills."""
    waiting = [(trial, folder / str(n)) for n, trial in enumerate(json.load(sys.stdin))]
    codes = {}
    running = {}
    while waiting or running:
        while waiting and len(running) < AT_ONCE:
            trial, path = waiting.pop(0)
            path.mkdir(parents=True, exist_ok=True)
            running[fork(trial, path)] = (trial, path)
        process, status = os.wait()
        trial, path = running.pop(process)
        codes.setdefault(path.name, []).append(os.waitstatus_to_exitcode(status))
        if "step" in trial or "write" in trial:
            then = {"step": trial["then"]} if "then" in trial else {}
            waiting.insert(0, ({"run": trial["run"], **then}, path))
    print(json.dumps(codes))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
