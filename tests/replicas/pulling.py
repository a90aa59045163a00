"""Run as a child process: L2-SP on one device and on two logical CPU devices.

    python -m tests.replicas.pulling

The devices have to be configured before TensorFlow starts, so this cannot be a test.
"""

import contextlib
import json

import keras
import numpy as np
import tensorflow as tf

import keras_transfer as ktf
from keras_transfer.optimizers import discriminative, find_discriminative
from tests.replicas import two_cpu_devices

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(64, 6)).astype("float32")
Y = (X.sum(axis=1) > 0).astype("int32")
PLAN = ktf.UnfreezingPlan(
    [
        ktf.Stage("probe", depth=1, epochs=1, peak_lr=1e-2),
        ktf.Stage("all", depth="all", epochs=2, peak_lr=1e-2),
    ]
)


def train(scope, strength):
    with scope:
        keras.utils.set_random_seed(0)
        layers = [keras.layers.Dense(8, "relu", name=name) for name in ("stem", "middle")]
        backbone = keras.Sequential([keras.Input((6,)), *layers])
        model = ktf.TransferModel(backbone, ktf.layers.ClassificationHead(2), groups="blocks")
        regularizer = ktf.regularizers.L2SP(strength)
        model.compile(
            discriminative("adam", regularizer=regularizer), "sparse_categorical_crossentropy"
        )
    before = model.get_weights()
    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(16)
    callbacks = [ktf.callbacks.GradualUnfreezing(PLAN, verbose=0)]
    model.fit(data, callbacks=callbacks, verbose=0, shuffle=False)
    return model, before


def distance(first, second):
    return float(max(np.abs(a - b).max() for a, b in zip(first, second, strict=True)))


def main():
    strategy = two_cpu_devices()
    one, _ = train(contextlib.nullcontext(), 100.0)
    two, before = train(strategy.scope(), 100.0)
    free, _ = train(contextlib.nullcontext(), 0.0)
    states = find_discriminative(two.optimizer)._table.saved_states()
    starts = [states[v.path].start for v in two.trainable_variables]
    found = {
        "replicas": strategy.num_replicas_in_sync,
        "distance": distance(one.get_weights(), two.get_weights()),
        "moved_of_two": distance(two.get_weights()[:-2], before[:-2]),
        "unpulled": distance(free.get_weights()[:-2], before[:-2]),
        "starts": distance(starts, before),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
