"""Time that `import keras_transfer` takes beyond `import keras`, in fresh processes.

Run it with `.venv/bin/python benchmarks/import_time.py`. Each sample is a process of its own,
the two sides taking turns, so that a busy moment of the machine hits both.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys

TARGET_MS = 100.0
CODE = """
import time
import keras
start = time.perf_counter()
import {module}
print((time.perf_counter() - start) * 1000)
"""
KERAS_CODE = """
import time
start = time.perf_counter()
import keras
print((time.perf_counter() - start) * 1000)
"""


def milliseconds(code: str) -> float:
    """Runs `code` in a fresh process and returns the time that it prints."""
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(result.stdout.split()[-1])


def main() -> int:
    """Prints both sides, and fails where the target is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=9, help="fresh processes for each side")
    processes = parser.parse_args().processes
    milliseconds(CODE.format(module="keras_transfer"))  # byte code is written, files are cached
    keras, package = [], []
    for _ in range(processes):
        keras.append(milliseconds(KERAS_CODE))
        package.append(milliseconds(CODE.format(module="keras_transfer")))
    for name, times in (("import keras", keras), ("import keras_transfer after it", package)):
        median = statistics.median(times)
        print(f"{name:31} {median:7.1f} ms  ({min(times):.1f} to {max(times):.1f})")
    median = statistics.median(package)
    ratio = 1 + median / statistics.median(keras)
    print(f"together {ratio:.3f} times keras alone; target: under {TARGET_MS:.0f} ms beyond it")
    return 0 if median < TARGET_MS else 1


if __name__ == "__main__":
    sys.exit(main())
