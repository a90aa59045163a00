"""Runs scenarios in forks of a process that has imported everything and done nothing.

Started as `python -m tests.tuning.forks FOLDER < scenarios.json`: they run at the same time, each
with its environment. Importing takes seconds and forking nothing, but a fork after TensorFlow's
first operation hangs: this process never does one.
"""

import json
import os
import pathlib
import sys
import traceback

from tests.tuning import scenarios


def fork(name, environment, folder):
    """Forks a process for a scenario and returns its process id."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        with open(folder / f"{environment.get('KERASTUNER_TUNER_ID', name)}.log", "a") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            os.environ.update(environment)
            scenarios.run(name, folder)
            code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main(folder):
    codes, running = {}, {}
    for name, directory, environment in json.load(sys.stdin):
        (folder / directory).mkdir(parents=True, exist_ok=True)
        running[fork(name, environment, folder / directory)] = name
    while running:
        process, status = os.wait()
        codes[running.pop(process)] = os.waitstatus_to_exitcode(status)
    print(json.dumps(codes))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
