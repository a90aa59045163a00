"""Scripts that need two replicas, and so a process of their own, and how tests run them."""

import json
import os
import subprocess
import sys


def run_in_child(module, *cases):
    """Runs a script that prints one JSON object per line, and returns these."""
    child = subprocess.run(
        [sys.executable, "-m", module, *cases],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"},
        check=False,
    )
    results = [json.loads(line) for line in child.stdout.splitlines() if line.startswith("{")]
    assert child.returncode == 0, f"{len(results)} cases ran, then: {child.stderr[-3000:]}"
    return results
