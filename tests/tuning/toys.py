"""A small search: three Dense layers, and data on which they do better than chance."""

import keras
import keras_tuner
import numpy as np

import keras_transfer as ktf

NAMES = ("stem", "mid", "top")


def data(count=24, seed=0):
    """Inputs with visible spread, and classes that depend on them."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, 6)).astype("float32")
    return x, (x @ rng.normal(size=(6, 2))).argmax(axis=1)


def backbone(stddev=0.7):
    layers = [keras.Input((6,))]
    for number, name in enumerate(NAMES):
        start = keras.initializers.RandomNormal(stddev=stddev, seed=number)
        layers.append(keras.layers.Dense(8, "tanh", kernel_initializer=start, name=name))
    return keras.Sequential(layers, name="body")


def build_model(body=None, run_eagerly=True, dropout=0.1, **options):
    head = ktf.layers.ClassificationHead(2, pooling=None, name="head", dropout=dropout)
    model = ktf.TransferModel(body or backbone(), head, groups="blocks", **options)
    # Tracing takes most of a trial's time, and is not what is tested here.
    model.compile(
        "adam", "sparse_categorical_crossentropy", metrics=["accuracy"], run_eagerly=run_eagerly
    )
    return model


def space(**parts):
    """The head's rate in one stage, unless `parts` say more."""
    given = {
        "epochs": 2, "head_lr": (1e-2, 1e-1), "lr_decay": None, "stage_lr_ratio": None,
        "depth": 1, "num_stages": 1,
    }  # fmt: skip
    return ktf.tuning.SearchSpace(**{**given, **parts})


def build_plain_model():
    return build_model(dropout=0.0)


def build_traced_model():
    return build_model(dropout=0.0, run_eagerly=False)


def two_stages(**parts):
    return space(depth="all", num_stages=2, stage_share=0.5, stage_lr_ratio=(0.1, 1.0), **parts)


def hypermodel(build=build_model, search_space=None, **options):
    options.setdefault("seed", 1)
    return ktf.tuning.FineTuningHyperModel(build, search_space or space(), **options)


def random_search(directory, model=None, max_trials=1, **options):
    options.setdefault("objective", "val_loss")
    return keras_tuner.RandomSearch(
        model or hypermodel(), max_trials=max_trials, seed=3, directory=directory, **options
    )


def search(tuner, **arguments):
    """Runs a search on the toy data without a word."""
    x, y = data()
    given = {"x": x, "y": y, "validation_data": data(16, seed=1), "batch_size": 8, "verbose": 0}
    tuner.search(**{**given, **arguments})
    return tuner


def scores(tuner):
    return [trial.score for trial in tuner.oracle.trials.values()]


class Seen(keras.callbacks.Callback):
    """What trials looked like when they began and ended; copies share one list."""

    def __init__(self, *look):
        super().__init__()
        self.look = look
        self.seen = []

    def __deepcopy__(self, memo):
        copied = Seen(*self.look)
        copied.seen = self.seen
        return copied

    def on_train_begin(self, logs=None):
        self.seen.append([look(self.model) for look in self.look])

    def on_train_end(self, logs=None):
        self.seen.append([look(self.model) for look in self.look])
