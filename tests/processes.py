"""Scripts in processes of their own, forked from one that has imported everything.

A script needs a process of its own where it makes logical devices, joins other workers, or is
killed. Importing TensorFlow takes seconds and forking nothing, but a fork after TensorFlow's first
operation hangs: so Python's fork server imports the package, and does nothing else.
"""

import json
import multiprocessing
import os
import pathlib
import runpy
import shutil
import sys
import tempfile
import textwrap
import weakref

_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(["keras_transfer", "keras_transfer.tuning"])


class Child:
    """A process that runs a module of this repository as a script.

    Args:
        module: Dotted name of the module, which finds its arguments in `sys.argv`.
        arguments: Strings.
        environment: Variables to set before the script runs. It sees no GPU.
        log: A file that what is printed is added to. Kept apart as `out` and `err` if not given.
    """

    def __init__(self, module, *arguments, environment=None, log=None):
        folder = pathlib.Path(tempfile.mkdtemp(prefix="child-"))
        weakref.finalize(self, shutil.rmtree, folder)
        self._out, self._err = log or folder / "out.txt", log or folder / "err.txt"
        for path in (self._out, self._err):
            path.touch()
        arguments = (module, [str(a) for a in arguments], environment or {}, self._out, self._err)
        self._process = _server.Process(target=_run, args=arguments, daemon=True)
        self._process.start()

    def wait(self, timeout=600):
        """Returns the exit code: minus its number where a signal has ended it."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            self.kill()
            raise TimeoutError(f"The child ran {timeout} s and more. {self.err[-3000:]}")
        return self._process.exitcode

    def kill(self):
        """Ends it at once, if it has not ended."""
        self._process.kill()
        self._process.join()

    @property
    def out(self):
        """What it has printed."""
        return self._out.read_text()

    @property
    def err(self):
        """What it has said of warnings and errors."""
        return self._err.read_text()

    @property
    def results(self):
        """What it has printed as JSON, one object to a line."""
        return [json.loads(line) for line in self.out.splitlines() if line.startswith("{")]


def _run(module, arguments, environment, out, err):
    for path, descriptor in ((out, 1), (err, 2)):
        with open(path, "a") as file:
            os.dup2(file.fileno(), descriptor)
    os.environ.update({"CUDA_VISIBLE_DEVICES": "-1", **environment})
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def run_in_child(module, *arguments, environment=None):
    """Runs a script that prints one JSON object per line, and returns these."""
    child = Child(module, *arguments, environment=environment)
    code = child.wait()
    assert code == 0, f"{len(child.results)} cases ran, then: {child.err[-3000:]}"
    return child.results


def run_code(code):
    """Runs code in a process that has imported the package, and returns what it printed."""
    child = Child("tests.running", textwrap.dedent(code))
    assert child.wait() == 0, child.err[-3000:]
    return child.out
