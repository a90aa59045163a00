"""Run as a child process: what is said of mistakes, on two logical CPU devices.

    python -m tests.replicas.mistakes stock/fine transfer/jit_compile ...

Prints one JSON object for each case: the error, the warnings, and whether a weight moved.
"""

import contextlib
import json
import sys
import warnings

import keras
import numpy as np
import tensorflow as tf

import keras_transfer as ktf
from tests.replicas import two_cpu_devices

PLAN = ktf.UnfreezingPlan([ktf.Stage("all", depth="all", epochs=1)])
X = np.random.default_rng(0).normal(size=(16, 6)).astype("float32")
Y = np.arange(16) % 3


def body(*more):
    return keras.Sequential([keras.Input((6,)), keras.layers.Dense(8, name="stem"), *more])


def build(kind, backbone, compiled=True, **options):
    head = keras.layers.Dense(3, "softmax", name="new")
    if kind == "stock":
        model = keras.Sequential([backbone, head])
    else:
        policy = options.pop("batch_norm", "inference")
        model = ktf.TransferModel(ktf.layers.PretrainedBackbone(backbone, batch_norm=policy), head)
    if compiled:
        optimizer = options.pop("optimizer", "adam")
        if isinstance(optimizer, dict):
            optimizer = keras.optimizers.Adam(**optimizer)
        model.compile(optimizer, LOSS, **options)
    return model


LOSS = "sparse_categorical_crossentropy"


def all_inside(kind, scope, **options):
    with scope:
        return build(kind, body(), **options)


def backbone_outside(kind, scope):
    backbone = body()
    backbone.trainable = False
    with scope:
        return build(kind, backbone)


def optimizer_outside(kind, scope):
    optimizer = keras.optimizers.Adam()
    optimizer.build([keras.Variable(np.zeros((6, 8)))])
    with scope:
        return build(kind, body(), optimizer=optimizer)


def compiled_outside(kind, scope):
    with scope:
        model = build(kind, body(), compiled=False)
    model.compile("adam", LOSS)
    return model


def model_outside(kind, scope):
    return build(kind, body())


def local_batch_norm(kind, scope, synchronized=False):
    with scope:
        layer = keras.layers.BatchNormalization(name="norm", synchronized=synchronized)
        options = {"batch_norm": "train"} if kind == "transfer" else {}
        return build(kind, body(layer), **options)


def on_keras_distribution(kind, scope):
    keras.distribution.set_distribution(keras.distribution.DataParallel(devices=["cpu:0"]))
    return build(kind, body())


def under_central_storage(kind, scope):
    with tf.distribute.experimental.CentralStorageStrategy().scope():
        return build(kind, body())


CASES = {
    "central_storage": under_central_storage,
    "fine": all_inside,
    "backbone_outside": backbone_outside,
    "optimizer_outside": optimizer_outside,
    "compiled_outside": compiled_outside,
    "fit_inside_model_outside": model_outside,
    "steps_per_execution": lambda k, s: all_inside(k, s, steps_per_execution=2),
    "jit_compile": lambda k, s: all_inside(k, s, jit_compile=True),
    "accumulation": lambda k, s: all_inside(k, s, optimizer={"gradient_accumulation_steps": 2}),
    "overwriting": lambda k, s: all_inside(
        k, s, optimizer={"use_ema": True, "ema_overwrite_frequency": 2}
    ),
    "local_batch_norm": local_batch_norm,
    "synchronized_batch_norm": lambda k, s: local_batch_norm(k, s, synchronized=True),
    "keras_distribution": on_keras_distribution,
}


def run(case, kind, strategy):
    result = {"case": f"{kind}/{case}", "error": "", "warnings": [], "moved": False}
    model, before = None, []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            model = CASES[case](kind, strategy.scope())
            before = model.get_weights()
            carrier = ktf.callbacks.GradualUnfreezing(
                PLAN, verbose=0, **({"batch_norm": "train"} if kind == "stock" else {})
            )
            inside = strategy.scope() if case.startswith("fit_inside") else contextlib.nullcontext()
            with inside:
                model.fit(X, Y, batch_size=8, callbacks=[carrier], verbose=0)
        except (ValueError, RuntimeError, tf.errors.OpError) as error:
            result["error"] = f"{type(error).__name__}: {error}"
        after = [] if model is None else model.get_weights()
        pairs = zip(before, after, strict=True)
        result["moved"] = any(not np.array_equal(a, b) for a, b in pairs)
    result["warnings"] = [str(w.message) for w in caught]
    keras.distribution.set_distribution(None)
    return result


def main(cases):
    strategy = two_cpu_devices()
    for each in cases:
        kind, _, case = each.partition("/")
        print(json.dumps(run(case, kind, strategy)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
