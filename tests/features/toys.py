"""Small models and trainings for the tests of the feature cache."""

import contextlib
import dataclasses
import io
import re

import keras
import numpy as np

import keras_transfer as ktf

PROBE = ktf.Stage("probe", depth=1, epochs=2, peak_lr=1e-1)
TOP = ktf.Stage("top", depth=2, epochs=2, peak_lr=3e-2, lr_decay=0.5)
ALL = ktf.Stage("all", depth="all", epochs=1, peak_lr=1e-2, lr_decay=0.5)
HEAD_ONLY = ktf.UnfreezingPlan([PROBE])
PLAN = ktf.UnfreezingPlan([PROBE, TOP])
LONG_PLAN = ktf.UnfreezingPlan([PROBE, TOP, ALL])


def inputs(count=22, width=6, seed=0):
    """Inputs with visible spread, and targets that depend on them."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, width)).astype("float32")
    y = (x @ rng.normal(size=(width, 2))).astype("float32")
    return x, y


def dense_backbone(units=8, names=("stem", "mid", "top"), seed=0, **options):
    """One Dense layer a group, with weights that depend on the seed alone."""
    layers = [keras.Input((6,))]
    for number, name in enumerate(names):
        start = keras.initializers.RandomNormal(stddev=0.7, seed=10 * seed + number)
        layers.append(
            keras.layers.Dense(units, "tanh", kernel_initializer=start, name=name, **options)
        )
    return keras.Sequential(layers, name="body")


def dense_model(backbone=None, head=None, optimizer="sgd", loss="mse", **options):
    """A compiled `TransferModel` with one group for each Dense layer."""
    model = ktf.TransferModel(
        backbone or dense_backbone(), head or keras.layers.Dense(2, name="head"), groups="blocks"
    )
    model.compile(optimizer, loss, **options)
    return model


@dataclasses.dataclass
class Run:
    """What a training left behind."""

    model: keras.Model
    history: dict
    weights: list
    printed: str

    @property
    def decision(self):
        """The line that says what is cached, and why the rest is not."""
        (line,) = re.findall(r"Feature cache o.*", self.printed) or [""]
        return line

    @property
    def passes(self):
        """Which data were run through the frozen layers, in order."""
        return re.findall(r"Caching the features of the (\w+) data", self.printed)


def fit(model, *given, plan=None, callbacks=(), **arguments):
    """Calls `fit`, with what it prints kept."""
    if plan is not None:
        callbacks = [ktf.callbacks.GradualUnfreezing(plan, verbose=0), *callbacks]
        arguments.setdefault("epochs", plan.total_epochs)
    arguments.setdefault("verbose", 2)
    # On some CPUs rounding depends on an example's place in its batch. (And for a data set
    # Keras warns of its own default.)
    arguments.setdefault("shuffle", False)
    if len(given) > 1 or isinstance(given[0], np.ndarray):
        arguments.setdefault("batch_size", 8)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        history = model.fit(*given, callbacks=list(callbacks), **arguments).history
    return Run(model, history, model.get_weights(), printed.getvalue())


def train(build, cache_features, *given, **arguments):
    """Makes a model and trains it, with the same random numbers each time."""
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(1)
    return fit(build(), *given, cache_features=cache_features, **arguments)


def same_history(one, two):
    assert one.keys() == two.keys()
    return all(np.array_equal(one[name], two[name], equal_nan=True) for name in one)


def same_weights(one, two):
    return all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))


def assert_same(one, two):
    """Asserts that two trainings agree bit for bit, in what they logged and in all weights."""
    for name, values in one.history.items():
        np.testing.assert_array_equal(values, two.history[name], err_msg=name)
    assert one.history.keys() == two.history.keys()
    for a, b in zip(one.weights, two.weights, strict=True):
        np.testing.assert_array_equal(a, b)


def assert_has_spread(features, rank=4):
    """Asserts that features are not all alike: everything agrees on those."""
    flat = np.asarray(features, "float64").reshape(len(features), -1)
    assert np.isfinite(flat).all()
    assert np.ptp(flat, axis=0).max() > 0.1
    assert np.linalg.matrix_rank(flat - flat.mean(axis=0), tol=1e-3) >= rank


def give_statistics(backbone, x):
    """Gives BatchNorms the statistics of `x`: with random weights alone features vanish.

    Returns:
        The features of `x`.
    """
    norms = [la for la in backbone.layers if isinstance(la, keras.layers.BatchNormalization)]
    kept = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    features = backbone(x, training=True)
    for norm, momentum in zip(norms, kept, strict=True):
        norm.momentum = momentum
    return features
