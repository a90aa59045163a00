"""Run as a child process: what two logical CPU devices are asked to sum in a step of each stage.

python -m tests.replicas.collectives
"""

import json

import keras
import numpy as np
import tensorflow as tf

import keras_transfer as ktf
from benchmarks.distribution import CountingReductions
from tests.replicas import two_cpu_devices

PLAN = ktf.UnfreezingPlan(
    [
        ktf.Stage("probe", depth=1, epochs=1),
        ktf.Stage("top", depth=2, epochs=1),
        ktf.Stage("all", depth="all", epochs=1),
    ]
)
X, Y = np.ones((8, 6), "float32"), np.zeros(8, "int32")


class Report(keras.callbacks.Callback):
    """Prints after each epoch what was summed while its step was traced."""

    def __init__(self, counting, names):
        super().__init__()
        self.counting, self.names = counting, names

    def on_train_batch_begin(self, batch, logs=None):
        self.counting.clear()

    def on_train_batch_end(self, batch, logs=None):
        training = [list(v.shape) for v in self.model.trainable_variables]
        result = {
            "stage": self.names.pop(0),
            "summed": [list(shape) for shape in self.counting.shapes],
            "reductions": self.counting.calls,
            "training": training,
        }
        print(json.dumps(result), flush=True)


def main():
    counting = CountingReductions()
    strategy = two_cpu_devices(cross_device_ops=counting)
    with strategy.scope():
        layers = [keras.layers.Dense(n, name=name) for name, n in (("stem", 5), ("middle", 4))]
        backbone = keras.Sequential([keras.Input((6,)), *layers])
        model = ktf.TransferModel(
            backbone, keras.layers.Dense(3, "softmax", name="new"), groups="blocks"
        )
        model.compile("adamw", "sparse_categorical_crossentropy")
    data = tf.data.Dataset.from_tensor_slices((X, Y))
    report = Report(counting, ["probe", "top", "all"])
    callbacks = [ktf.callbacks.GradualUnfreezing(PLAN, verbose=0), report]
    options = {"cache_features": False, "verbose": 0, "shuffle": False}
    model.fit(data.batch(8, drop_remainder=True), callbacks=callbacks, **options)
    model.fit(data.batch(8), callbacks=[Report(counting, ["uneven"])], **options)


if __name__ == "__main__":
    main()
