"""Run as a child process: AutoSurgical on one device and on two logical CPU devices.

    python -m tests.replicas.surgical

The devices have to be configured before TensorFlow starts, so this cannot be a test.
"""

import contextlib
import json

import keras
import numpy as np
import tensorflow as tf

import keras_transfer as ktf
from tests.replicas import two_cpu_devices

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(32, 6)).astype("float32")
Y = (X.sum(axis=1) > 0).astype("int32")


def train(scope):
    with scope:
        keras.utils.set_random_seed(0)
        layers = [keras.layers.Dense(8, "relu", name=name) for name in ("stem", "middle")]
        backbone = keras.Sequential([keras.Input((6,)), *layers])
        model = keras.Sequential([backbone, keras.layers.Dense(2, "softmax", name="new")])
        model.compile("adam", "sparse_categorical_crossentropy")
    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(16)
    surgical = ktf.callbacks.AutoSurgical(data, 2, groups="blocks", verbose=0)
    history = model.fit(data, epochs=2, callbacks=[surgical], verbose=0, shuffle=False).history
    rates = [history[f"learning_rate/{name}"] for name in ("stem", "middle", "new")]
    return model, [float(rate / 1e-3) for both in rates for rate in both]


def main():
    strategy = two_cpu_devices()
    _, one = train(contextlib.nullcontext())
    model, two = train(strategy.scope())
    found = {
        "replicas": strategy.num_replicas_in_sync,
        "one": one,
        "two": two,
        "optimizer": type(model.optimizer).__name__,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
