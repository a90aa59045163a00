"""Small trainings that can be killed, and everything they end with."""

import os
import pathlib
import signal

import keras
import numpy as np
import tensorflow as tf

import keras_transfer as ktf
from keras_transfer import _training_state

EXAMPLES, BATCH = 8, 4
STEPS = EXAMPLES // BATCH


def data():
    generator = np.random.default_rng(0)
    x = generator.normal(size=(EXAMPLES, 4)).astype("float32")
    return x, (x @ generator.normal(size=(4, 2))).astype("float32")


def backbone():
    return keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(5, activation="tanh", name="stem"),
            keras.layers.Dropout(0.3, name="noise"),
            keras.layers.Dense(5, name="top"),
            keras.layers.BatchNormalization(name="norm"),
        ],
        name="body",
    )


# The second stage ends on a plateau at its second epoch, and its first epoch's weights return.
PLAN = ktf.UnfreezingPlan(
    [
        ktf.Stage("probe", depth=1, epochs=2, peak_lr=0.1),
        ktf.Stage(
            "top", depth=2, epochs=3, peak_lr=0.05, lr_decay=0.5,
            monitor="loss", mode="max", patience=1,
        ),
        ktf.Stage("all", depth="all", epochs=2, schedule="one_cycle", peak_lr=0.05),
    ]
)  # fmt: skip
FIXED = ktf.UnfreezingPlan(
    [
        ktf.Stage("probe", depth=1, epochs=2, peak_lr=0.1),
        ktf.Stage("top", depth=2, epochs=1, lr_decay=0.5),
        ktf.Stage("all", depth="all", epochs=2, lr_decay=0.5),
    ]
)


class KilledAt(keras.callbacks.Callback):
    """Kills the process where a step begins."""

    def __init__(self, epoch, batch):
        super().__init__()
        self.at = (epoch, batch)
        self.epoch = -1

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_begin(self, batch, logs=None):
        if (self.epoch, batch) == self.at:
            os.kill(os.getpid(), signal.SIGKILL)

    def get_state(self):
        return {}

    def set_state(self, state):
        pass


class WhileWriting:
    """Kills the process in the middle of the n-th checkpoint: half written, synced or renamed."""

    def __init__(self, number, moment):
        self.left, self.moment = number, moment
        self.plain = {name: getattr(os, name) for name in ("fsync", "rename")}
        os.fsync, os.rename = self.fsync, self.rename

    def fsync(self, descriptor):
        self.plain["fsync"](descriptor)
        if self.moment == "synced":
            self.count()

    def rename(self, source, target):
        if self.moment == "half written":
            self.left -= 1
            if self.left == 0:
                with open(source, "r+b") as file:
                    file.truncate(os.path.getsize(source) // 2)
                os.kill(os.getpid(), signal.SIGKILL)
        self.plain["rename"](source, target)
        if self.moment == "renamed":
            self.count()

    def count(self):
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def by_steps(directory, callbacks):
    """A `TransferModel` on arrays, cached, with averages: goes on at the very step.

    It runs eagerly, since tracing would take all the time of being killed at every step.
    """
    model = ktf.TransferModel(
        backbone(), ktf.layers.RegressionHead(2, pooling=None, name="head"), groups="blocks"
    )
    optimizer = keras.optimizers.AdamW(0.01, use_ema=True)
    model.compile(optimizer, "mse", metrics=["mae"], run_eagerly=True)
    x, y = data()
    model.fit(
        x, y, batch_size=BATCH, verbose=0, epochs=7, validation_data=(x[:6], y[:6]),
        callbacks=[
            ktf.callbacks.GradualUnfreezing(PLAN, verbose=0),
            ktf.callbacks.ResumableTraining(directory, save_freq=1, verbose=0),
            *callbacks,
        ],
    )  # fmt: skip
    return model


def by_epochs(directory, callbacks):
    """A `TransferModel` on a shuffled data set that is not cached, in mixed precision."""
    keras.config.set_dtype_policy("mixed_float16")
    model = ktf.TransferModel(
        backbone(),
        ktf.layers.RegressionHead(2, pooling=None, name="head"),
        groups="blocks",
    )
    optimizer = keras.optimizers.LossScaleOptimizer(
        keras.optimizers.Nadam(0.01, global_clipnorm=1.0), initial_scale=4, dynamic_growth_steps=3
    )
    model.compile(optimizer, "mse")
    dataset = tf.data.Dataset.from_tensor_slices(data()).shuffle(EXAMPLES, seed=5).batch(BATCH)
    model.fit(
        dataset, verbose=0, cache_features=False,
        callbacks=[
            *callbacks,
            ktf.callbacks.GradualUnfreezing(FIXED, verbose=0),
            ktf.callbacks.ResumableTraining(directory, verbose=0),
        ],
    )  # fmt: skip
    return model


def cached_set(directory, callbacks):
    """A `TransferModel` whose only stage reads cached features of a shuffled data set."""
    model = ktf.TransferModel(
        backbone(), ktf.layers.RegressionHead(2, pooling=None, name="head"), groups="blocks"
    )
    model.compile(keras.optimizers.Adam(0.01), "mse")
    model.freeze()
    dataset = tf.data.Dataset.from_tensor_slices(data()).shuffle(EXAMPLES, seed=5).batch(BATCH)
    model.fit(
        dataset, verbose=0, epochs=3, cache_features=True,
        callbacks=[*callbacks, ktf.callbacks.ResumableTraining(directory, 1, verbose=0)],
    )  # fmt: skip
    return model


def stock(directory, callbacks):
    """A functional model of Keras, with Keras's own callbacks on both sides of ours."""
    body = backbone()
    inputs = keras.Input((4,))
    model = keras.Model(inputs, keras.layers.Dense(2, name="head")(body(inputs)))
    model.compile("adam", "mse", metrics=["mae"])
    x, y = data()
    early = keras.callbacks.EarlyStopping("loss", mode="max", patience=3, restore_best_weights=True)
    model.fit(
        x, y, batch_size=BATCH, verbose=0, epochs=5,
        callbacks=[
            early,
            *callbacks,
            ktf.callbacks.GradualUnfreezing(FIXED, groups="blocks", verbose=0),
            ktf.callbacks.ResumableTraining(directory, verbose=0),
            keras.callbacks.ReduceLROnPlateau("loss", mode="max", patience=1, factor=0.5),
            keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate * 0.9),
            keras.callbacks.CSVLogger(str(directory) + ".csv"),
        ],
    )  # fmt: skip
    return model


RUNS = {"by_steps": by_steps, "by_epochs": by_epochs, "cached_set": cached_set, "stock": stock}


def run(name, directory, callbacks=()):
    """Runs one of `RUNS` and returns all that it ends with."""
    tf.config.experimental.enable_op_determinism()
    tf.config.threading.set_intra_op_parallelism_threads(1)
    keras.utils.set_random_seed(1)
    model = RUNS[name](directory, list(callbacks))
    end = {f"model {k}": v for k, v in _training_state.model_arrays(model).items()}
    for part, arrays in _training_state.optimizer_arrays(model).items():
        end.update({f"optimizer {part} {k}": v for k, v in arrays.items()})
    for column, values in model.history.history.items():
        end[f"history {column}"] = np.array(values)
    end["history epochs"] = np.array(model.history.epoch)
    log = pathlib.Path(str(directory) + ".csv")
    if log.exists():
        end["csv"] = np.frombuffer(log.read_bytes(), "uint8")
    return end
