"""A toy model of three layer groups, and gradients that depend on a variable alone."""

import keras
import numpy as np
import tensorflow as tf

GROUPS = ("stem", "body", "head")


def make_model(seed=0):
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(8, activation="tanh", name="stem"),
            keras.layers.Dense(8, activation="tanh", name="body"),
            keras.layers.Dense(3, name="head"),
        ],
        name="toy",
    )


def make_data(examples=64, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(examples, 6)).astype("float32")
    y = rng.normal(size=(examples, 3)).astype("float32")
    return x, y


def group_variables(model):
    return {name: list(model.get_layer(name).variables) for name in GROUPS}


def train_only(model, *names):
    for layer in model.layers:
        layer.trainable = layer.name in names
    return model.trainable_variables


def values(variables):
    return [np.array(v.numpy()) for v in variables]


def distance(first, second):
    return max(np.abs(a - b).max() for a, b in zip(first, second, strict=True))


def gradient(variable, step):
    phase = np.arange(np.prod(variable.shape), dtype="float32").reshape(variable.shape)
    return 0.3 * variable.value + np.float32(0.1) * np.cos(0.9 * step + phase).astype("float32")


def run(optimizer, variables, steps, *, first=0):
    """Applies `steps` updates; the gradients depend on variable and step only."""
    for step in range(first, first + steps):
        optimizer.apply([gradient(v, step) for v in variables], variables)


def fit(model, optimizer, data, *, epochs=2, loss="mse", **options):
    callbacks = options.pop("callbacks", [])
    model.compile(optimizer, loss, **options)
    x, y = data
    model.fit(x, y, batch_size=8, epochs=epochs, shuffle=False, verbose=0, callbacks=callbacks)
    return values(model.variables)


def save(optimizer):
    """Returns what the optimizer writes into a weights file."""
    store = {}
    optimizer.save_own_variables(store)
    return {key: np.array(value) for key, value in store.items()}


def sparse(variable, rows):
    """Returns the gradient of an embedding as Keras hands it over."""
    rows = np.asarray(rows)
    block = np.ones((len(rows), variable.shape[1])) * (1 + rows[:, None])
    return tf.IndexedSlices(
        tf.constant(block, "float32"),
        tf.constant(rows),
        dense_shape=tf.constant(list(variable.shape)),
    )
