"""Fills an entry of a shared directory in a process of its own; see test_storage.py."""

import os
import pathlib
import signal
import sys
import time

import tensorflow as tf

from keras_transfer.features import FeatureCache
from tests.features.toys import dense_model, inputs


def meet(folder, count):
    """Waits for other processes, so that all are at the same place."""
    (folder / str(os.getpid())).touch()
    deadline = time.monotonic() + 120
    while len(list(folder.iterdir())) < count:
        assert time.monotonic() < deadline, "the other process does not come"
        time.sleep(0.02)


def main(folder, meeting, role):
    def examples():
        for number, row in enumerate(inputs()[0]):
            if number == 10 and role == "killed":
                print("half way", flush=True)
                (meeting / "killed").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            if number == 10:
                meet(meeting, count=3)  # the killed one first: it is not to find their entry
            yield row

    dataset = tf.data.Dataset.from_generator(examples, output_signature=tf.TensorSpec((6,)))
    dataset = dataset.batch(2).apply(tf.data.experimental.assert_cardinality(11))
    FeatureCache(folder, key="shared").features(dense_model(), dataset)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), sys.argv[3])
