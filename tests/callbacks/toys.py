"""Toy models of four layer groups (stem, mid, top, head), of every kind that a user may have."""

import keras
import numpy as np

import keras_transfer as ktf
from keras_transfer.callbacks import GradualUnfreezing

PLAN = ktf.UnfreezingPlan(
    [
        ktf.Stage("probe", depth=1, epochs=1),
        ktf.Stage("top", depth=2, epochs=1),
        ktf.Stage("all", depth="all", epochs=1),
    ]
)
# One group more at each stage, so that every boundary lies between two of them.
EVERY_BOUNDARY = ktf.UnfreezingPlan([ktf.Stage(f"top_{n}", depth=n, epochs=1) for n in range(1, 5)])
# Kernel and bias of each: stem, mid, top, head.
EXPECTED = [
    [False] * 6 + [True] * 2,
    [False] * 4 + [True] * 4,
    [True] * 8,
]
TWO_STAGES = ktf.UnfreezingPlan([PLAN.stages[0], PLAN.stages[2]])
EXPECTED_OF_TWO_STAGES = [EXPECTED[0], EXPECTED[2]]
EXPECTED_AT_EVERY_BOUNDARY = [[False] * (8 - 2 * n) + [True] * 2 * n for n in range(1, 5)]


def backbone():
    return keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(8, "tanh", name="stem"),
            keras.layers.Dense(8, "tanh", name="mid"),
            keras.layers.Dense(8, "tanh", name="top"),
        ],
        name="body",
    )


def stock():
    """A Sequential model around the backbone."""
    return keras.Sequential([backbone(), keras.layers.Dense(3, "softmax", name="new")])


def functional():
    """A functional model around the backbone, as the transfer-learning guide writes it."""
    inputs = keras.Input((6,))
    features = backbone()(inputs, training=False)
    return keras.Model(inputs, keras.layers.Dense(3, "softmax", name="new")(features))


def inlined():
    """A functional model whose backbone's layers lie beside the head's."""
    inputs = keras.Input((4, 6))
    x = inputs
    for name in ("stem", "mid", "top"):
        x = keras.layers.Dense(8, "tanh", name=name)(x)
    x = keras.layers.GlobalAveragePooling1D(name="pool")(x)
    return keras.Model(inputs, keras.layers.Dense(3, "softmax", name="new")(x))


@keras.saving.register_keras_serializable(package="tests")
class Subclassed(keras.Model):
    """A subclassed model that holds the backbone and a head."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.body = backbone()
        self.classify = keras.layers.Dense(3, "softmax", name="new")

    def call(self, x):
        return self.classify(self.body(x))


def subclassed():
    model = Subclassed()
    model(np.zeros((1, 6), "float32"))
    return model


def transfer():
    return ktf.TransferModel(
        backbone(), keras.layers.Dense(3, "softmax", name="new"), groups="blocks"
    )


def data(model=None):
    keras.utils.set_random_seed(0)
    shape = getattr(model, "input_shape", (None, 6))[1:]
    return np.random.normal(size=(16, *shape)).astype("float32"), np.arange(16) % 3


class Snapshots(keras.callbacks.Callback):
    """Records which weights moved in each epoch, bit for bit."""

    def on_train_begin(self, logs=None):
        self.moves = []
        self.before = self.model.get_weights()

    def on_epoch_end(self, epoch, logs=None):
        after = self.model.get_weights()
        self.moves.append(
            [not np.array_equal(a, b) for a, b in zip(self.before, after, strict=False)]
        )
        self.before = after


def compiled(model, optimizer="adam", **options):
    model.compile(optimizer, "sparse_categorical_crossentropy", **options)
    return model


def unfreezing(model, plan=PLAN, **options):
    groups = None if isinstance(model, ktf.TransferModel) else "blocks"
    return GradualUnfreezing(plan, groups=groups, verbose=0, **options)


def fit(model, plan=PLAN, callbacks=(), **options):
    """Trains under a plan and returns which weights moved in each of its epochs."""
    x, y = data(model)
    seen = Snapshots()
    callbacks = [unfreezing(model, plan), seen, *callbacks]
    options = {"epochs": plan.total_epochs, "verbose": 0, **options}
    model.fit(x, y, callbacks=callbacks, **options)
    return seen.moves
