"""A training on two replicas that stops and goes on; see tests/reliability/test_replicas.py."""

import json
import sys
import tempfile

import keras
import numpy as np
import tensorflow as tf

import keras_transfer as ktf
from keras_transfer import _training_state
from tests.replicas import two_cpu_devices

tf.config.experimental.enable_op_determinism()
STRATEGY = two_cpu_devices()
PLAN = ktf.UnfreezingPlan(
    [
        ktf.Stage("probe", depth=1, epochs=2, monitor="loss", patience=1),
        ktf.Stage("all", depth="all", epochs=2, peak_lr=0.01, lr_decay=0.5),
    ]
)


class KilledError(Exception):
    pass


class StopAt(keras.callbacks.Callback):
    def __init__(self, epoch, batch):
        super().__init__()
        self.at, self.epoch = (epoch, batch), -1

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_begin(self, batch, logs=None):
        if (self.epoch, batch) == self.at:
            raise KilledError

    def get_state(self):
        return {}

    def set_state(self, state):
        pass


def run(directory, save_freq, policy, callbacks=()):
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(0)
    generator = np.random.default_rng(0)
    x = generator.normal(size=(24, 4)).astype("float32")
    y = (x @ generator.normal(size=(4, 2))).astype("float32")
    with STRATEGY.scope():
        body = keras.Sequential(
            [
                keras.Input((4,)),
                keras.layers.Dense(5, name="stem"),
                keras.layers.Dropout(0.2),
                keras.layers.BatchNormalization(name="norm", synchronized=True),
            ],
            name="body",
        )
        backbone = ktf.layers.PretrainedBackbone(body, batch_norm=policy, name="backbone")
        model = ktf.TransferModel(backbone, ktf.layers.RegressionHead(2, pooling=None, name="head"))
        model.compile(keras.optimizers.AdamW(0.01, use_ema=True), "mse", metrics=["mae"])
    model.fit(
        x, y, batch_size=8, verbose=0, epochs=4,
        callbacks=[
            ktf.callbacks.GradualUnfreezing(PLAN, verbose=0),
            ktf.callbacks.ResumableTraining(directory, save_freq, verbose=0),
            *callbacks,
        ],
    )  # fmt: skip
    return model


def everything(model):
    found = dict(_training_state.model_arrays(model))
    for part, arrays in _training_state.optimizer_arrays(model).items():
        found.update({f"{part} {name}": value for name, value in arrays.items()})
    for name, values in model.history.history.items():
        found[f"history {name}"] = np.array(values)
    return found


CASES = {
    "steps": (1, "train", [(1, 2), (3, 1)]),
    "epochs": ("epoch", "inference", [(2, 2)]),
}


def main(case):
    save_freq, policy, kills = CASES[case]
    whole = everything(run(tempfile.mkdtemp(), save_freq, policy))
    lost = []
    for at in kills:
        directory = tempfile.mkdtemp()
        try:
            run(directory, save_freq, policy, [StopAt(*at)])
        except KilledError:
            end = everything(run(directory, save_freq, policy))
        names = whole.keys() | end.keys()
        same = [
            n for n in names if n in whole and n in end and whole[n].tobytes() == end[n].tobytes()
        ]
        lost += sorted(f"{at} {name}" for name in names - set(same))
    print(
        json.dumps(
            {
                "case": case,
                "replicas": STRATEGY.num_replicas_in_sync,
                "lost": lost,
                "variables": len(whole),
                "losses": whole["history loss"].tolist(),
                "of_each_replica": sum("@" in name for name in whole),
            }
        )
    )


if __name__ == "__main__":
    for name in sys.argv[1:]:
        main(name)
