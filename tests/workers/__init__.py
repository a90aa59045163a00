"""Scripts for several local worker processes, and how tests run them."""

import contextlib
import json
import socket

from tests.processes import Child


def free_ports(count):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@contextlib.contextmanager
def start_workers(module, *arguments, count=2):
    """Local workers of one job; killed, whatever happens, when the block ends."""
    hosts = [f"127.0.0.1:{port}" for port in free_ports(count)]
    children = []
    try:
        for index in range(count):
            task = {"cluster": {"worker": hosts}, "task": {"type": "worker", "index": index}}
            environment = {"TF_CONFIG": json.dumps(task)}
            children.append(Child(module, *arguments, environment=environment))
        yield children
    finally:
        for child in children:
            child.kill()


def run_workers(module, *arguments, count=2):
    """Runs a script in local workers and returns what each has printed."""
    with start_workers(module, *arguments, count=count) as children:
        for index, child in enumerate(children):
            assert child.wait(timeout=240) == 0, f"worker {index}: {child.err[-3000:]}"
        return [child.results for child in children]
