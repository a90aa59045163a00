"""A training that was killed, at any step or while it wrote, ends like one that was not."""

import concurrent.futures
import json
import signal

import numpy as np
import pytest

from tests.processes import Child
from tests.reliability.runs import STEPS

EPOCHS = {"by_steps": 6, "by_epochs": 5, "cached_set": 3, "stock": 4}


def steps_of(run, every=1):
    steps = [(epoch, batch) for epoch in range(EPOCHS[run]) for batch in range(STEPS)]
    return [{"run": run, "step": step} for step in steps[::every]]


def writes_of(run, numbers):
    moments = ("half written", "synced", "renamed")
    return [{"run": run, "write": (n, moment)} for n in numbers for moment in moments]


def attempt(trial, folder):
    """Runs a trial to its end: killed, and again without anything that kills. Returns the codes."""
    folder.mkdir()
    attempts = [trial]
    if "step" in trial or "write" in trial:
        if "then" in trial:
            attempts.append({"run": trial["run"], "step": trial["then"]})
        attempts.append({"run": trial["run"]})
    script, log = "tests.reliability.attempt", folder / "log.txt"
    return [Child(script, json.dumps(one), folder, log=log).wait() for one in attempts]


def ends_of(trials, folder):
    """Runs the trials, two at a time, and returns exit codes and ends."""
    folders = [folder / str(number) for number in range(len(trials))]
    with concurrent.futures.ThreadPoolExecutor(max_workers=2) as two:
        codes = list(two.map(attempt, trials, folders))
    ends = []
    for trial, path in zip(trials, folders, strict=True):
        assert (path / "end.npz").exists(), (trial, (path / "log.txt").read_text())
        with np.load(path / "end.npz") as archive:
            ends.append(dict(archive))
    return codes, ends


def check(trials, folder, capsys):
    names = list(dict.fromkeys(trial["run"] for trial in trials))
    everything = [{"run": name} for name in names] + trials
    codes, ends = ends_of(everything, folder)
    lost = []
    for number, trial in enumerate(everything):
        if number < len(names):
            assert codes[number] == [0]
            continue
        whole = ends[names.index(trial["run"])]
        end = ends[number]
        kills = 2 if "then" in trial else 1
        assert codes[number] == [-signal.SIGKILL] * kills + [0], (trial, codes[number])
        different = [k for k in whole.keys() | end.keys() if not _same(whole.get(k), end.get(k))]
        if different:
            lost.append((trial, sorted(different)))
    with capsys.disabled():
        kills = sum(2 if "then" in trial else 1 for trial in trials)
        print(f"\n{kills} kills tried, {len(lost)} lost anything.")
    assert not lost, lost
    for name in names:
        whole = ends[names.index(name)]
        if name == "by_epochs":
            scales = [v for k, v in whole.items() if "loss_scale" in k and v.dtype == np.float32]
            assert max(map(float, scales)) > 4.0, "the loss scale has to move"
        assert whole["history epochs"].tolist() == list(range(EPOCHS[name]))
        assert np.ptp(whole["history loss"]) > 0


def _same(a, b):
    return a is not None and b is not None and a.dtype == b.dtype and a.tobytes() == b.tobytes()


def test_a_killed_training_ends_like_one_that_was_not(tmp_path, capsys):
    trials = [
        *steps_of("by_steps", every=6),
        *steps_of("by_epochs", every=7),
        *steps_of("cached_set", every=5),
        *steps_of("stock", every=8),
        {"run": "by_steps", "step": (1, 1), "then": (3, 0)},
        *writes_of("by_steps", [8]),
    ]
    check(trials, tmp_path, capsys)


@pytest.mark.exhaustive
def test_every_step_and_every_write(tmp_path, capsys):
    trials = [trial for run in EPOCHS for trial in steps_of(run)]
    for run in EPOCHS:
        trials += writes_of(
            run, range(1, EPOCHS[run] * (STEPS if run in ("by_steps", "cached_set") else 1) + 2)
        )
    # Killed again at a later step, after going on.
    for run in EPOCHS:
        steps = [trial["step"] for trial in steps_of(run)]
        trials += [
            {"run": run, "step": first, "then": second}
            for number, first in enumerate(steps)
            for second in steps[number + 1 :: 2]
        ]
    assert len(trials) >= 200
    check(trials, tmp_path, capsys)
