"""Run as a child process: trains on two logical CPU devices and on one, prints distances.

    python -m tests.optimizers.two_replicas sgd/plain adamw/clipnorm ...

The devices have to be configured before TensorFlow starts, so this cannot be a test.
"""

import json
import sys

import keras
import tensorflow as tf

from keras_transfer.optimizers import DiscriminativeOptimizer, discriminative, find_discriminative
from tests.optimizers import toys
from tests.replicas import two_cpu_devices

KO = keras.optimizers
EXAMPLES, BATCH = 64, 16
OPTIMIZERS = {
    "sgd": lambda **options: KO.SGD(5e-2, momentum=0.9, **options),
    "adamw": lambda **options: KO.AdamW(1e-2, weight_decay=0.1, **options),
    "lion": lambda **options: KO.Lion(3e-3, weight_decay=0.1, **options),
    "nadam": lambda **options: KO.Nadam(1e-2, **options),
    "muon": lambda **options: KO.Muon(1e-2, **options),
}
OPTIONS = {
    "plain": {},
    "clipnorm": {"clipnorm": 0.05},
    "clipvalue": {"clipvalue": 0.01},
    "global_clipnorm": {"global_clipnorm": 0.05},
    "ema": {"use_ema": True, "ema_momentum": 0.9},
    "ema_overwrite": {"use_ema": True, "ema_momentum": 0.9, "ema_overwrite_frequency": 3},
    "accumulate": {"gradient_accumulation_steps": 2},
    "accumulate_clip": {"gradient_accumulation_steps": 2, "global_clipnorm": 0.05},
    "loss_scale": {},
    "stock_clipnorm": {"clipnorm": 0.05},
}


def on_one_device():
    return tf.device("CPU:0")


def train(name, case, scope):
    with scope():
        model = toys.make_model()
        optimizer = OPTIMIZERS[name](**OPTIONS[case])
        if case == "loss_scale":
            optimizer = KO.LossScaleOptimizer(optimizer, initial_scale=8.0, dynamic_growth_steps=3)
        if not case.startswith("stock"):
            optimizer = discriminative(optimizer)
        # What one device does is traced elsewhere.
        eagerly = model.distribute_strategy.num_replicas_in_sync == 1
        model.compile(optimizer, "mse", run_eagerly=eagerly)
    inner = find_discriminative(optimizer)
    x, y = toys.make_data(EXAMPLES)
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(BATCH)
    if inner is None:
        model.fit(data, epochs=2, verbose=0)
        return model, None
    inner.set_groups(toys.group_variables(model))
    inner.set_multipliers({"stem": 0.25, "body": 0.5})
    for stage in (["head"], ["stem", "body", "head"]):
        toys.train_only(model, *stage)
        inner.build(model.trainable_variables)
        inner.start_stage(keras.optimizers.schedules.PolynomialDecay(1.0, 8, 0.5))
        model.make_train_function(force=True)
        model.fit(data, epochs=2, verbose=0)
    return model, inner


def train_by_hand(scope, strategy):
    """A custom loop; the optimizer is first built inside the traced step, by `apply`."""
    with scope():
        model = toys.make_model()
        optimizer = discriminative(KO.AdamW(1e-2, weight_decay=0.1, global_clipnorm=0.05))
    x, y = toys.make_data(BATCH)

    def step(x, y):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum((model(x) - y) ** 2) / BATCH
        grads = tape.gradient(loss, model.trainable_variables)
        optimizer.apply(grads, model.trainable_variables)

    replicas = strategy.num_replicas_in_sync if strategy else 1
    share = BATCH // replicas

    @tf.function
    def run():
        if strategy is None:
            step(x, y)
            return

        def of_replica(value):
            return strategy.experimental_distribute_values_from_function(
                lambda context: tf.constant(
                    value[
                        context.replica_id_in_sync_group * share : (
                            context.replica_id_in_sync_group + 1
                        )
                        * share
                    ]
                )
            )

        strategy.run(step, args=(of_replica(x), of_replica(y)))

    for _ in range(5):
        run()
    return model, optimizer


def save_and_take_over(scope):
    """Plain, then taken over, saved, loaded into a new optimizer, then plain again."""
    with scope():
        model = toys.make_model()
        model.compile(KO.AdamW(1e-2, weight_decay=0.1, use_ema=True), "mse")
    x, y = toys.make_data(EXAMPLES)
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(BATCH)
    model.fit(data, epochs=1, verbose=0)
    with scope():
        taken = DiscriminativeOptimizer.take_over(model.optimizer)
        taken.set_groups(toys.group_variables(model))
        model.compile(taken, "mse")
    model.fit(data, epochs=1, verbose=0)
    store = toys.save(taken)
    with scope():
        loaded = DiscriminativeOptimizer.from_config(taken.get_config())
        loaded.set_groups(toys.group_variables(model))
        loaded.build(model.trainable_variables)
        loaded.load_own_variables(store)
        model.compile(loaded, "mse")
    model.fit(data, epochs=1, verbose=0)
    with scope():
        model.compile(DiscriminativeOptimizer.give_back(loaded), "mse")
    model.fit(data, epochs=1, verbose=0)
    return model, None


def overflow(scope, wrap):
    """A step whose gradients overflow on the second replica alone; returns weights and scale."""
    with scope():
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        optimizer = KO.LossScaleOptimizer(KO.SGD(0.1), initial_scale=2.0**15)
        if wrap:
            optimizer = discriminative(optimizer)
        model.compile(optimizer, "mse")
    before = model.get_weights()[0].tolist()
    data = tf.data.Dataset.from_tensor_slices(([[1.0, 1.0]] * 4, [[1.0]] * 3 + [[1e36]]))
    model.fit(data.batch(4, drop_remainder=True), verbose=0)
    after = model.get_weights()[0].tolist()
    return {"before": before, "after": after, "scale": float(optimizer.dynamic_scale.numpy())}


def main(cases):
    strategy = two_cpu_devices()
    start = toys.make_model().get_weights()
    for case in cases:
        name, options = case.split("/")
        if name == "overflow":
            found = overflow(strategy.scope, wrap=options == "ours")
            print(json.dumps({"case": case, **found}), flush=True)
            continue
        if name == "by_hand":
            one, counts = train_by_hand(on_one_device, None)
            two, counts_of_two = train_by_hand(strategy.scope, strategy)
        elif name == "take_over":
            one, counts = save_and_take_over(on_one_device)
            two, counts_of_two = save_and_take_over(strategy.scope)
        else:
            one, counts = train(name, options, on_one_device)
            two, counts_of_two = train(name, options, strategy.scope)
        result = {
            "case": case,
            "distance": float(toys.distance(one.get_weights(), two.get_weights())),
            "moved": float(toys.distance(one.get_weights(), start)),
            "steps": counts and counts.group_steps,
            "steps_of_two": counts_of_two and counts_of_two.group_steps,
        }
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
