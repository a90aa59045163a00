"""Run as a child process: batches that do not divide by two, on one and on two CPU devices.

    python -m tests.replicas.uneven cached local stock ...

Prints one JSON object for each case; see tests/test_uneven_batches.py.
"""

import json
import sys
import warnings

import keras
import numpy as np
import tensorflow as tf

import keras_transfer as ktf
from tests.replicas import two_cpu_devices

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(22, 6)).astype("float32")
Y = RANDOM.integers(0, 3, size=22)
WEIGHTS = np.linspace(0.2, 2.0, 22).astype("float32")
VALIDATION = X[:9] + 0.1, Y[:9]
BATCH = 7  # batches of 7, 7, 7 and 1: the last has fewer examples than there are replicas
PLAN = ktf.UnfreezingPlan(
    [
        ktf.Stage("probe", depth=1, epochs=2, peak_lr=3e-2),
        ktf.Stage("all", depth="all", epochs=2, lr_decay=0.5, schedule="one_cycle"),
    ]
)
ALL = ktf.UnfreezingPlan(
    [ktf.Stage("all", depth="all", epochs=2, peak_lr=1e-2, schedule="one_cycle")]
)
LOSSES = {
    "mean": "sparse_categorical_crossentropy",
    "sum": keras.losses.SparseCategoricalCrossentropy(reduction="sum"),
    "by_weight": keras.losses.SparseCategoricalCrossentropy(reduction="mean_with_sample_weight"),
}


def build(batch_norm="", synchronized=False, kind="transfer"):
    keras.utils.set_random_seed(0)
    layers = [keras.Input((6,))]
    for name in ("stem", "top"):
        layers += [keras.layers.Dense(8, "tanh", name=name, kernel_regularizer="l2")]
        if batch_norm:
            norm = keras.layers.BatchNormalization(name=f"{name}_bn", synchronized=synchronized)
            layers.append(norm)
    body = keras.Sequential(layers, name="body")
    head = keras.layers.Dense(3, "softmax", name="new")
    if kind == "stock":
        return keras.Sequential([body, head])
    policy = ktf.layers.PretrainedBackbone(
        body, batch_norm=batch_norm or "inference", groups="blocks"
    )
    return ktf.TransferModel(policy, head)


def train(
    scope,
    plan=ALL,
    data="arrays",
    loss="mean",
    cache=False,
    validates=False,
    cut=False,
    eagerly=False,
    rows=22,
    **options,
):
    with scope():
        model = build(**options)
        # What one device does is traced elsewhere.
        eagerly = eagerly or model.distribute_strategy.num_replicas_in_sync == 1
        model.compile("adamw", LOSSES[loss], metrics=["accuracy"], run_eagerly=eagerly)
    arguments = {"batch_size": BATCH, "sample_weight": WEIGHTS[:rows]}
    x, y = X[:rows], Y[:rows]
    if data == "dataset":
        x, y, arguments = tf.data.Dataset.from_tensor_slices((X, Y)).batch(BATCH), None, {}
    if data == "generator":
        begins = [BATCH * step for step in range(4)] * plan.total_epochs
        x = ((X[i : i + BATCH], Y[i : i + BATCH]) for i in begins)
        y, arguments = None, {"steps_per_epoch": 4}
    if cut:  # by hand, to what is a multiple of two
        x = tf.data.Dataset.from_tensor_slices((X[:21], Y[:21])).batch(BATCH)
        x, y, arguments = x.map(lambda a, b: (a[:6], b[:6])), None, {}
    history = model.fit(
        x,
        y,
        callbacks=[ktf.callbacks.GradualUnfreezing(plan, verbose=0)],
        validation_data=VALIDATION if validates else None,
        validation_batch_size=4,
        shuffle=False,
        verbose=0,
        cache_features=cache,
        **arguments,
    ).history
    return model, history


def distance(one, two):
    pairs = zip(one.get_weights(), two.get_weights(), strict=True)
    return max(float(np.abs(a - b).max()) for a, b in pairs)


CASES = {
    "arrays": {"plan": PLAN, "validates": True},
    "cached": {"plan": PLAN, "cache": True, "validates": True},
    "eager": {"eagerly": True, "rows": 21},
    "generator": {"data": "generator"},
    "sum": {"loss": "sum"},
    "by_weight": {"loss": "by_weight"},
    "synchronized": {"batch_norm": "train", "synchronized": True, "data": "dataset"},
}


def compare(case, strategy):
    one, on_one = train(lambda: tf.device("CPU:0"), **CASES[case])
    two, on_two = train(strategy.scope, **CASES[case])
    # A loss that is a sum, or divided by weights, is logged by Keras as replicas see it.
    is_mean = case not in ("sum", "by_weight")
    columns = [name for name in on_one if "accuracy" in name or ("loss" in name and is_mean)]
    return {
        "case": case,
        "replicas": two.distribute_strategy.num_replicas_in_sync,
        "distance": distance(one, two),
        "moved": distance(one, build(CASES[case].get("batch_norm", ""))),
        "columns": {name: [on_one[name], on_two[name]] for name in columns},
    }


def local_statistics(strategy):
    """BatchNorm that trains on each replica's share: the odd examples are left out."""
    found = {"case": "local"}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        options = {"batch_norm": "train", "data": "dataset"}
        model, history = train(strategy.scope, **options)
        found["warnings"] = [str(w.message) for w in caught]
        by_hand, _ = train(strategy.scope, cut=True, **options)
    found["distance"] = distance(model, by_hand)
    found["finite"] = bool(np.isfinite(history["loss"]).all())
    found["steps"] = int(model.optimizer.iterations.numpy())
    return found


def stock(strategy):
    """A stock model: the callback can only say what to do."""
    found = {"case": "stock", "errors": [], "moved": False}
    data = tf.data.Dataset.from_tensor_slices((X[:21], Y[:21]))
    first_even = data.batch(6)  # 6, 6, 6, 3
    for x, y in ((first_even, None), (X[:21], Y[:21])):
        with strategy.scope():
            model = build(kind="stock")
            model.compile("adam", LOSSES["mean"])
        before = model.get_weights()
        try:
            carrier = ktf.callbacks.GradualUnfreezing(PLAN, groups="blocks", verbose=0)
            model.fit(
                x, y, batch_size=None if y is None else 6, epochs=4, callbacks=[carrier], verbose=0
            )
        except ValueError as error:
            found["errors"].append(str(error))
        found["moved"] |= any(
            not np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True)
        )
    with strategy.scope():
        model = build(kind="stock")
        model.compile("adam", LOSSES["mean"], metrics=["accuracy"])
    try:
        model.evaluate(X, Y, batch_size=7, verbose=0)
        found["unprepared"] = ""
    except Exception as error:
        found["unprepared"] = str(error)
    ktf.distribute.prepare(model)
    one = build(kind="stock")
    one.compile("adam", LOSSES["mean"], metrics=["accuracy"])
    found["evaluated"] = [m.evaluate(X, Y, batch_size=7, verbose=0) for m in (one, model)]
    return found


def main(cases):
    strategy = two_cpu_devices()
    others = {"local": local_statistics, "stock": stock}
    for case in cases:
        result = others[case](strategy) if case in others else compare(case, strategy)
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
