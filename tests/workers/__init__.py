"""Scripts for several local worker processes, and how tests run them."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile


def free_ports(count):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


class Workers:
    """Local workers of one job; killed by process id, whatever happens, when the block ends.

    Each runs a script that prints one JSON object per line.
    """

    def __init__(self, module, *arguments, count=2):
        self.module, self.arguments, self.count = module, arguments, count
        self.processes, self.files = [], []

    def __enter__(self):
        hosts = [f"127.0.0.1:{port}" for port in free_ports(self.count)]
        for index in range(self.count):
            task = {"cluster": {"worker": hosts}, "task": {"type": "worker", "index": index}}
            environment = {
                **os.environ,
                "TF_CONFIG": json.dumps(task),
                "TF_CPP_MIN_LOG_LEVEL": "2",
            }
            out, err = tempfile.TemporaryFile("w+"), tempfile.TemporaryFile("w+")
            self.files.append((out, err))
            command = [sys.executable, "-m", self.module, *self.arguments]
            self.processes.append(
                subprocess.Popen(command, stdout=out, stderr=err, env=environment)
            )
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.kill()
            process.wait()
        for pair in self.files:
            for file in pair:
                file.close()

    def wait(self, index, timeout=240):
        """Returns a worker's exit code, what it printed as JSON, and what it said of errors."""
        code = self.processes[index].wait(timeout)
        out, err = self.files[index]
        out.seek(0)
        err.seek(0)
        lines = [line for line in out.read().splitlines() if line.startswith("{")]
        return code, [json.loads(line) for line in lines], err.read()


def run_workers(module, *arguments, count=2):
    """Runs a script in local workers and returns what each has printed."""
    with Workers(module, *arguments, count=count) as workers:
        results = []
        for index in range(count):
            code, found, errors = workers.wait(index)
            assert code == 0, f"worker {index}: {errors[-3000:]}"
            results.append(found)
    return results
