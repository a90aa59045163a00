"""Group rates cost next to nothing in the step that is traced; times are in `benchmarks/`."""

import keras
import numpy as np
import tensorflow as tf

from keras_transfer.optimizers import discriminative


def operations_of_a_step(optimizer, groups):
    layers = [keras.layers.Dense(4, name=f"layer_{i}") for i in range(12)]
    model = keras.Sequential([keras.Input((4,)), *layers])
    model.compile(optimizer, "mse", jit_compile=False)
    if groups:
        by_name = {f"group_{i}": [] for i in range(groups)}
        for number, layer in enumerate(layers):
            by_name[f"group_{number * groups // len(layers)}"] += layer.variables
        optimizer.set_groups(by_name)
        optimizer.set_multipliers({f"group_{i}": 0.5 for i in range(groups - 1)})
    optimizer.build(model.trainable_variables)
    step = tf.function(lambda x, y: model.train_step((x, y)))
    graph = step.get_concrete_function(np.ones((2, 4), "float32"), np.ones((2, 4))).graph
    return len(graph.get_operations())


def test_a_step_with_group_rates_has_about_as_many_operations_as_the_plain_one():
    make = keras.optimizers.AdamW
    plain = operations_of_a_step(make(), 0)
    assert operations_of_a_step(discriminative(make()), 4) <= 1.03 * plain
