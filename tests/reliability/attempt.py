"""Runs one training in a process of its own, which may be killed by it, and writes its end."""

import json
import pathlib
import sys

import numpy as np

from tests.reliability import runs


def main(trial, folder):
    callbacks = []
    if "step" in trial:
        callbacks = [runs.KilledAt(*trial["step"])]
    elif "write" in trial:
        runs.WhileWriting(*trial["write"])
    end = runs.run(trial["run"], folder / "checkpoints", callbacks)
    np.savez(folder / "end.npz", **end)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), pathlib.Path(sys.argv[2]))
