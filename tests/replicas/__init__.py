"""Scripts that need two replicas, and so a process of their own, and how tests run them."""

import json
import os
import subprocess
import sys

import tensorflow as tf


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


def two_cpu_devices(**options):
    """Returns a strategy over two logical CPU devices.

    A script has to call this before TensorFlow does anything else.
    """
    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"], **options)
