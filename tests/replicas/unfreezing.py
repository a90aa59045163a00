"""Run as a child process: one plan on two logical CPU devices and on one, prints how they compare.

    python -m tests.replicas.unfreezing stock/froze_first transfer/as_it_is ...

The devices have to be configured before TensorFlow starts, so this cannot be a test.
"""

import json
import sys

import keras
import numpy as np
import tensorflow as tf

import keras_transfer as ktf
from tests.replicas import two_cpu_devices

PLAN = ktf.UnfreezingPlan(
    [
        ktf.Stage("probe", depth=1, epochs=1, peak_lr=3e-2),
        ktf.Stage("top", depth=2, epochs=2, peak_lr=1e-2, lr_decay=0.5),
        ktf.Stage("all", depth="all", epochs=1, lr_decay=0.5, schedule="one_cycle"),
    ]
)


# Each case has an optimizer and a BatchNorm policy of its own.
OPTIMIZERS = {
    "stock/froze_first": lambda: keras.optimizers.Adam(1e-2),
    "stock/as_it_is": lambda: keras.optimizers.SGD(1e-2, momentum=0.9),
    "transfer/froze_first": lambda: keras.optimizers.AdamW(1e-2, weight_decay=0.1),
    "transfer/as_it_is": lambda: keras.optimizers.Lion(3e-3, weight_decay=0.1),
}
BATCH_NORM = {
    "stock/froze_first": "freeze",
    "stock/as_it_is": "train",
    "transfer/froze_first": "train",
    "transfer/as_it_is": "inference",
}


def normalized():
    """Two groups of a Dense and its BatchNorm, whose statistics are not the initial ones."""
    layers = [keras.Input((6,))]
    for name in ("stem", "top"):
        layers += [
            keras.layers.Dense(8, "tanh", name=name, kernel_regularizer="l2"),
            keras.layers.BatchNormalization(name=f"{name}_bn", synchronized=True),
        ]
    backbone = keras.Sequential(layers, name="body")
    for layer in backbone.layers[1::2]:
        layer.moving_mean.assign(np.linspace(-0.1, 0.1, 8))
        layer.moving_variance.assign(np.linspace(0.3, 0.6, 8))
    return backbone


def make(case):
    keras.utils.set_random_seed(0)
    body, head = normalized(), keras.layers.Dense(3, "softmax", name="new")
    policy = BATCH_NORM[case]
    if case.startswith("stock"):
        model = keras.Sequential([body, head])
        callback = ktf.callbacks.GradualUnfreezing(
            PLAN, groups="blocks", batch_norm=policy, verbose=0
        )
    else:
        backbone = ktf.layers.PretrainedBackbone(body, batch_norm=policy, groups="blocks")
        model = ktf.TransferModel(backbone, head)
        callback = ktf.callbacks.GradualUnfreezing(PLAN, verbose=0)
    if case.endswith("froze_first"):
        body.trainable = False
    # What one device does is traced elsewhere.
    eagerly = model.distribute_strategy.num_replicas_in_sync == 1
    model.compile(OPTIMIZERS[case](), "sparse_categorical_crossentropy", run_eagerly=eagerly)
    return model, callback


class Moves(keras.callbacks.Callback):
    """Records the names of the weights that moved in each epoch, bit for bit."""

    def on_train_begin(self, logs=None):
        self.moved = []
        self.before = self.read()

    def on_epoch_end(self, epoch, logs=None):
        after = self.read()
        names = [n for n in after if not np.array_equal(self.before[n], after[n])]
        self.moved.append(sorted(names))
        self.before = after

    def read(self):
        return {"/".join(v.path.split("/")[-2:]): v.numpy() for v in self.model.weights}


def train(case, scope):
    with scope():
        model, callback = make(case)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(32, 6)).astype("float32")
    y = rng.integers(0, 3, size=32)
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
    moves = Moves()
    epochs = PLAN.total_epochs
    fitted = model.fit(data, epochs=epochs, callbacks=[callback, moves], shuffle=False, verbose=0)
    return model, fitted.history, moves.moved


def main(cases):
    strategy = two_cpu_devices()
    for case in cases:
        one, history, moved = train(case, lambda: tf.device("CPU:0"))
        two, history_of_two, moved_of_two = train(case, strategy.scope)
        weights = zip(one.get_weights(), two.get_weights(), strict=True)
        result = {
            "case": case,
            "replicas": two.distribute_strategy.num_replicas_in_sync,
            "distance": max(float(np.abs(a - b).max()) for a, b in weights),
            "losses": history["loss"],
            "losses_of_two": history_of_two["loss"],
            "moved": moved,
            "moved_of_two": moved_of_two,
            "optimizer": type(two.optimizer).__name__,
        }
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
