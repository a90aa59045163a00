"""Trains with cached features on one replica and on two; see tests/features/test_replicas.py.

Logical devices have to be configured before TensorFlow starts, so this cannot be a test.
"""

import json

import keras
import numpy as np
import tensorflow as tf

from keras_transfer import _stage_features
from keras_transfer.features import FeatureCache, _decision
from keras_transfer.features._prefix import Prefix
from tests.features.toys import PLAN, dense_model, fit, inputs
from tests.replicas import two_cpu_devices

RAN_ON = set()  # the replicas that the prefix was traced for


class Watched(Prefix):
    def _run(self, inputs):
        replica = tf.distribute.get_replica_context()
        if replica is not None and replica.num_replicas_in_sync > 1:
            RAN_ON.add(int(tf.get_static_value(replica.replica_id_in_sync_group)))
        return super()._run(inputs)


def train(scope, cache_features):
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(1)
    with scope():
        model = dense_model(optimizer=keras.optimizers.Adam(1e-2))
    validation = tf.data.Dataset.from_tensor_slices(inputs(16, seed=3)).batch(8)
    return fit(
        model,
        *inputs(24),
        plan=PLAN,
        validation_data=validation,
        cache_features=cache_features,
    )


def distance(one, two):
    pairs = zip(one.weights, two.weights, strict=True)
    return max(float(np.abs(a - b).max()) for a, b in pairs)


def main():
    strategy = two_cpu_devices()
    _decision.Prefix = _stage_features.Prefix = Watched
    one = train(lambda: tf.device("CPU:0"), False)
    two = train(strategy.scope, "auto")
    perturbed = train(lambda: tf.device("CPU:0"), FeatureCache(dtype="bfloat16"))
    result = {
        "replicas": two.model.distribute_strategy.num_replicas_in_sync,
        "passes": two.passes,
        "ran_on": sorted(RAN_ON),
        "decision": two.decision,
        "distance": distance(one, two),
        "perturbed": distance(one, perturbed),
        "losses": [one.history["loss"], two.history["loss"]],
        "val_losses": [one.history["val_loss"], two.history["val_loss"]],
    }
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
