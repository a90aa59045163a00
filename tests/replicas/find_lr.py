"""Run as a child process: an LR range test on one device and on two logical CPU devices.

    python -m tests.replicas.find_lr

The devices have to be configured before TensorFlow starts, so this cannot be a test.
"""

import contextlib
import json

import keras
import numpy as np
import tensorflow as tf

import keras_transfer as ktf
from keras_transfer.lr_finder import find_lr
from tests.replicas import two_cpu_devices

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(128, 6)).astype("float32")
Y = (X.sum(axis=1) > 0).astype("int32")
PLAN = ktf.UnfreezingPlan(
    [
        ktf.Stage("probe", depth=1, epochs=1),
        ktf.Stage("all", depth="all", epochs=1, lr_decay=0.5),
    ]
)


def make_model():
    keras.utils.set_random_seed(0)
    backbone = keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(8, "relu", name="stem"),
            keras.layers.Dense(8, "relu", name="middle"),
        ]
    )
    head = ktf.layers.ClassificationHead(2)
    model = ktf.TransferModel(backbone, head, groups="blocks")
    model.compile("adamw", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def make_batch_norm_model():
    keras.utils.set_random_seed(0)
    layers = [keras.Input((6,)), keras.layers.BatchNormalization(), keras.layers.Dense(2)]
    model = keras.Sequential(layers)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def of_each_replica(strategy, model):
    return [
        [copy.numpy().tolist() for copy in strategy.experimental_local_results(v.value)]
        for v in model.variables
    ]


def state(model):
    return [v.numpy().tobytes() for v in [*model.variables, *model.optimizer.variables]]


def main():
    strategy = two_cpu_devices()
    found = {"replicas": strategy.num_replicas_in_sync}
    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(32)
    for name, scope in (("one", contextlib.nullcontext()), ("two", strategy.scope())):
        with scope:
            model = make_model()
        model.fit(data, verbose=0)
        before = state(model)
        curve = find_lr(model, data, PLAN, "all", max_lr=1e-1, num_steps=20, verbose=0)
        found[name] = list(curve.losses)
        found["restored"] = state(model) == before and found.get("restored", True)
        model.fit(data, verbose=0)
        found["trains_afterwards"] = state(model) != before
    with strategy.scope():
        model = make_batch_norm_model()
    model.fit(data, verbose=0)
    before = of_each_replica(strategy, model)
    found["replicas_differ"] = any(copies[0] != copies[1] for copies in before)
    find_lr(model, data, num_steps=20, verbose=0)
    found["each_replica_restored"] = of_each_replica(strategy, model) == before
    try:
        find_lr(model, data.unbatch().batch(1), num_steps=20, verbose=0)
    except ValueError as error:
        found["refused"] = str(error)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
