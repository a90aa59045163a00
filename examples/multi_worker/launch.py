"""Starts two workers of `train.py` on this machine, as two machines would run them.

Run it with `.venv/bin/python examples/multi_worker/launch.py` (after `make quickstart`). Each
worker is a process with a free port on loopback and a `TF_CONFIG`; on real machines only the
addresses differ. When one ends with an error the other is ended too, and none outlives this script.
Start it again after killing a worker: training goes on from the last checkpoint.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

TRAIN = Path(__file__).with_name("train.py")


def free_ports(count: int) -> list[int]:
    """Returns ports on loopback that nothing listens on."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [int(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports


def environments(count: int) -> list[dict[str, str]]:
    """Returns the environment of each worker, which is told by it who all of them are."""
    hosts = [f"127.0.0.1:{port}" for port in free_ports(count)]
    configs = [
        {"cluster": {"worker": hosts}, "task": {"type": "worker", "index": index}}
        for index in range(count)
    ]
    common = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"}
    return [{**common, "TF_CONFIG": json.dumps(config)} for config in configs]


def wait(workers: Sequence[subprocess.Popen[str]], seconds: float) -> int:
    """Waits for all workers, or for the first that fails; returns 0 if all succeeded."""
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        codes = [worker.poll() for worker in workers]
        if any(codes):
            return next(code for code in codes if code)
        if all(code == 0 for code in codes):
            return 0
        time.sleep(0.2)
    print(f"The workers did not end within {seconds:.0f} seconds.", file=sys.stderr)
    return 1


def leave(number: int, frame: FrameType | None) -> None:
    """Leaves as after Ctrl-C, by way of `finally`, when asked to end."""
    sys.exit(128 + number)


def main(arguments: Sequence[str] | None = None) -> int:
    """Starts the workers, waits for them, and leaves none behind."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog="Other options are handed on to train.py."
    )
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--timeout", type=float, default=600, help="in seconds")
    options, rest = parser.parse_known_args(arguments)
    before = signal.signal(signal.SIGTERM, leave)
    workers: list[subprocess.Popen[str]] = []
    try:
        for environment in environments(options.workers):
            command = [sys.executable, str(TRAIN), *rest]
            workers.append(subprocess.Popen(command, env=environment, text=True))
        return wait(workers, options.timeout)
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    sys.exit(main())
