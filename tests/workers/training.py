"""One worker of a training; see tests/test_multi_worker.py.

    python -m tests.workers.training stock transfer ...

Workers find each other through TF_CONFIG. Without it, one process trains alone.
"""

import json
import os
import pathlib
import random
import signal
import sys

import keras
import numpy as np
import tensorflow as tf

import keras_transfer as ktf
from keras_transfer import _keras_internals

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(22, 6)).astype("float32")
Y = RANDOM.integers(0, 3, size=22)
VALIDATION = X[:9] + 0.1, Y[:9]
PLAN = ktf.UnfreezingPlan(
    [
        ktf.Stage("probe", depth=1, epochs=2, peak_lr=3e-2),
        ktf.Stage("all", depth="all", epochs=2, peak_lr=1e-2, lr_decay=0.5, schedule="one_cycle"),
    ]
)


def build(kind):
    keras.utils.set_random_seed(0)
    layers = [keras.Input((6,))]
    for name in ("stem", "top"):
        layers.append(keras.layers.Dense(8, "tanh", name=name, kernel_regularizer="l2"))
        if kind != "stock":
            layers.append(keras.layers.BatchNormalization(name=f"{name}_bn", synchronized=True))
    body = keras.Sequential(layers, name="body")
    head = keras.layers.Dense(3, "softmax", name="new")
    if kind == "stock":
        return keras.Sequential([body, head])
    policy = "train" if kind == "batch_norm" else "inference"
    body = ktf.layers.PretrainedBackbone(body, batch_norm=policy, groups="blocks")
    return ktf.TransferModel(body, head)


def train(kind, scope, **options):
    with scope():
        model = build(kind)
        model.compile("adamw", "sparse_categorical_crossentropy", metrics=["accuracy"], **options)
    batch = 7
    if kind == "stock":
        ktf.distribute.prepare(model)
    arguments = {} if kind == "stock" else {"cache_features": False}
    groups = {"groups": "blocks"} if kind == "stock" else {}
    history = model.fit(
        X,
        Y,
        batch_size=batch,
        epochs=PLAN.total_epochs,
        callbacks=[ktf.callbacks.GradualUnfreezing(PLAN, verbose=0, **groups)],
        validation_data=VALIDATION,
        shuffle=False,
        verbose=0,
        **arguments,
    ).history
    scores = model.evaluate(*VALIDATION, batch_size=4, verbose=0)
    return {
        "case": kind,
        "replicas": model.distribute_strategy.num_replicas_in_sync,
        "weights": np.concatenate([w.ravel() for w in model.get_weights()]).tolist(),
        "start": np.concatenate([w.ravel() for w in build(kind).get_weights()]).tolist(),
        "evaluated": scores,
        **{name: history[name] for name in ("loss", "accuracy", "val_loss", "val_accuracy")},
    }


def cached(scope, directory):
    """Shuffled arrays whose features lie in a directory, twice."""
    result = {"case": "cached", "runs": []}
    cache = pathlib.Path(directory)
    for _ in range(2):
        with scope():
            model = build("transfer")
            model.compile("adamw", "sparse_categorical_crossentropy", metrics=["accuracy"])
        history = model.fit(
            X,
            Y,
            batch_size=7,
            callbacks=[ktf.callbacks.GradualUnfreezing(PLAN, verbose=0)],
            validation_data=VALIDATION,
            verbose=0,
            cache_features=ktf.features.FeatureCache(cache),
        ).history
        result["runs"].append(
            {
                "weights": np.concatenate([w.ravel() for w in model.get_weights()]).tolist(),
                "loss": history["loss"],
                "val_loss": history["val_loss"],
                "entries": {p.name: p.stat().st_mtime_ns for p in cache.iterdir()},
            }
        )
    manifests = [json.loads(p.read_text()) for p in cache.glob("*/manifest.json")]
    result["rows"] = sorted(json.loads(m["content"])["n_rows"] for m in manifests)
    return result


def unprepared(scope):
    """What Keras's own `fit` says."""
    with scope():
        model = build("stock")
        model.compile("adamw", "sparse_categorical_crossentropy")
    try:
        model.fit(X, Y, batch_size=8, verbose=0)
    except Exception as error:
        return {"case": "unprepared", "error": f"{type(error).__name__}: {error}"}
    return {"case": "unprepared", "error": ""}


class DiesAt(keras.callbacks.Callback):
    """Kills its process in an epoch of its own choice."""

    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_begin(self, epoch, logs=None):
        self.is_due = epoch == self.epoch

    def on_train_batch_end(self, batch, logs=None):
        if self.is_due and batch == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    def get_state(self):
        return {}

    def set_state(self, state):
        pass


def resumable(scope, directory, dies):
    with scope():
        model = build("transfer")
        model.compile("adamw", "sparse_categorical_crossentropy", metrics=["accuracy"])
    callbacks = [
        ktf.callbacks.GradualUnfreezing(PLAN, verbose=0),
        ktf.callbacks.ResumableTraining(directory, verbose=0),
    ]
    if dies:
        callbacks.append(DiesAt(2))
    history = model.fit(
        X, Y, batch_size=8, callbacks=callbacks, cache_features=False, verbose=0
    ).history
    return {
        "case": "resumable",
        "weights": np.concatenate([w.ravel() for w in model.get_weights()]).tolist(),
        "loss": history["loss"],
    }


class StopsAt(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        self.model.stop_training = True


class Batches(keras.callbacks.Callback):
    seen = 0

    def on_train_batch_end(self, batch, logs=None):
        self.seen += 1


def order_of(model):
    """Returns the order in which `fit` would read the examples, drawn as it draws it."""
    order = []

    class Look(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            around = _keras_internals.callback_list_around(self)
            order.extend(int(i) for i in around._order.indices(len(X)))

    model.fit(X, Y, batch_size=8, callbacks=[Look()], cache_features=False, verbose=0)
    return order


def decisions(scope):
    """What one worker alone decides, and what would differ between workers."""
    task = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
    found = {"case": "decisions", "task": task}
    with scope():
        model = build("transfer")
        model.compile("adamw", "sparse_categorical_crossentropy")
    random.seed(task)
    batches = Batches()
    # Only the second worker stops, after its first batch; both end with the epoch.
    callbacks = [batches, StopsAt()] if task else [batches]
    model.fit(X, Y, batch_size=8, epochs=3, callbacks=callbacks, cache_features=False, verbose=0)
    found["order"] = order_of(model)
    found["epochs"], found["batches"] = len(model.history.epoch), batches.seen
    found["weights"] = np.concatenate([w.ravel() for w in model.get_weights()]).tolist()
    # The metric that ends a stage is one that each worker sees another value of.
    plan = ktf.UnfreezingPlan(
        [
            ktf.Stage("probe", depth=1, epochs=4, monitor="own", mode="min", patience=1),
            ktf.Stage("all", depth="all", epochs=1),
        ]
    )
    own = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: logs.update(own=float(-epoch if task else epoch))
    )
    carrier = ktf.callbacks.GradualUnfreezing(plan, verbose=0)
    history = model.fit(X, Y, batch_size=8, callbacks=[own, carrier], verbose=0).history
    found["stages"] = history["stage"]
    found["errors"] = []
    writers = (
        [keras.callbacks.ModelCheckpoint("never.keras")],
        [keras.callbacks.BackupAndRestore("never")] if not task else [],
    )
    for callbacks in writers:
        try:
            model.fit(X, Y, callbacks=callbacks, verbose=0)
        except ValueError as error:
            found["errors"].append(str(error))
    return found


def main(cases):
    def scope():
        return tf.device("CPU:0")

    task = -1
    if "TF_CONFIG" in os.environ:
        scope = tf.distribute.MultiWorkerMirroredStrategy().scope
        task = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
    for case in cases:
        if case.startswith("resumable"):
            _, directory, dies = case.split(":")
            result = resumable(scope, directory, dies == str(task))
        elif case.startswith("cached"):
            result = cached(scope, case.partition(":")[2])
        elif case == "unprepared":
            result = unprepared(scope)
        elif case == "decisions":
            result = decisions(scope)
        else:
            result = train(case, scope)
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
