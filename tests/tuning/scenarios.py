"""Searches that are interrupted and killed, each run in a process of its own."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import keras
import keras_tuner
import tensorflow as tf

import keras_transfer as ktf
from tests.tuning import toys


class At(keras.callbacks.Callback):
    """Does things where the n-th trials of this process end their first epoch."""

    begun = 0

    def __init__(self, actions):
        super().__init__()
        self.actions = actions

    def on_train_begin(self, logs=None):
        At.begun += 1

    def on_epoch_end(self, epoch, logs=None):
        if epoch == 0 and At.begun in self.actions:
            self.actions[At.begun]()


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def interrupt():
    signal.raise_signal(signal.SIGINT)


def sleep():
    time.sleep(11)


def stall():
    """Stops the process for longer than two leases."""
    wake = f"sleep 12; kill -CONT {os.getpid()}"
    subprocess.Popen(["sh", "-c", wake], start_new_session=True)
    os.kill(os.getpid(), signal.SIGSTOP)


class SaysWhereItBegins(keras.callbacks.Callback):
    def on_train_begin(self, logs=None):
        print(
            f"Begins at step {int(keras.ops.convert_to_numpy(self.model.optimizer.iterations))}",
            flush=True,
        )


def tuner(directory, build=toys.build_plain_model, oracle=None, **options):
    oracle = oracle or keras_tuner.oracles.RandomSearchOracle("val_loss", max_trials=4, seed=3)
    return ktf.tuning.Tuner(
        toys.hypermodel(build), oracle, directory=directory, project_name="search", **options
    )


def interrupted_and_killed(directory):
    """Ctrl-C in the second trial; the same command again; killed in the third."""
    # A process that a shell started in the background ignores Ctrl-C, and so do its children.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    keras.utils.set_random_seed(0)
    try:
        toys.search(tuner(directory), callbacks=[At({2: interrupt})], verbose=1)
    except KeyboardInterrupt:
        print("KeyboardInterrupt")
    At.begun = 0
    toys.search(tuner(directory), callbacks=[At({2: kill})], verbose=1)


def unbroken(directory):
    toys.search(tuner(directory))


def chief(directory):
    toys.search(tuner(directory, lease_s=5), verbose=1)


def hyperband():
    return keras_tuner.oracles.HyperbandOracle("val_loss", max_epochs=4, factor=2, seed=3)


def hyperband_chief(directory):
    toys.search(tuner(directory, oracle=hyperband(), lease_s=5), verbose=1)


def worker(directory, *callbacks, **options):
    devices = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(
        devices[0], [tf.config.LogicalDeviceConfiguration()] * 2
    )
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    # Replicas cannot run eagerly.
    options.update(lease_s=5, distribution_strategy=strategy)
    made = tuner(directory, toys.build_traced_model, **options)
    toys.search(made, callbacks=list(callbacks), verbose=1)
    print(ktf.tuning.TuningResult(made).table())


def dying_worker(directory):
    worker(directory, At({1: kill}))


def slow_worker(directory):
    """Its first epoch takes longer than two leases."""
    worker(directory, At({1: sleep}))


def hyperband_worker(directory):
    worker(directory, SaysWhereItBegins(), oracle=hyperband())


def stalled_hyperband_worker(directory):
    worker(directory, SaysWhereItBegins(), At({1: stall}), oracle=hyperband())


def run(name, directory):
    tf.config.threading.set_intra_op_parallelism_threads(1)
    getattr(sys.modules[__name__], name)(directory)


if __name__ == "__main__":
    run(sys.argv[1], pathlib.Path(sys.argv[2]))
