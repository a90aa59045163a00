"""What a change of stage does to the optimizer: slots, step counts, averages."""

import keras
import numpy as np
import pytest

import keras_transfer as ktf
from tests.callbacks import toys

MAKERS = pytest.mark.parametrize("make", [toys.stock, toys.transfer])


class AtTheBoundaries(keras.callbacks.Callback):
    """Reads the optimizer's variables at the end of each epoch and after the next has begun.

    It has to stand after `GradualUnfreezing`, which changes the stage as an epoch begins.
    """

    def on_train_begin(self, logs=None):
        self.ends, self.begins, self.steps = [], [], []

    def on_epoch_begin(self, epoch, logs=None):
        self.begins.append(self.read())
        self.steps.append(dict(self.model.optimizer.group_steps))

    def on_epoch_end(self, epoch, logs=None):
        self.ends.append(self.read())

    def read(self):
        values = {v.path: v.numpy() for v in self.model.optimizer.variables}
        assert len(values) == len(self.model.optimizer.variables), "paths are not unique"
        return values


@pytest.fixture(scope="module", params=[toys.stock, toys.transfer])
def seen(request):
    model = toys.compiled(request.param(), keras.optimizers.AdamW(1e-2))
    callback = AtTheBoundaries()
    toys.fit(model, toys.EVERY_BOUNDARY, [callback])
    return callback


@pytest.mark.usually("stock")
def test_no_change_of_stage_touches_state_that_was_there(seen):
    for before, after in zip(seen.ends[:-1], seen.begins[1:], strict=True):
        kept = {path: value for path, value in before.items() if "stage_start" not in path}
        assert kept.keys() <= after.keys()
        for path, value in kept.items():
            np.testing.assert_array_equal(after[path], value, err_msg=path)
    # Control: the steps of an epoch do touch it.
    for begin, end in zip(seen.begins, seen.ends, strict=True):
        names = [path for path in begin if "momentum" in path]
        assert all(not np.array_equal(begin[n], end[n]) for n in names)


def test_slots_are_made_for_what_trains_and_each_group_counts_its_own_steps(seen):
    momenta = [sum("momentum" in path for path in values) for values in seen.begins]
    assert momenta == [2, 4, 6, 8]
    assert [list(steps.values()) for steps in seen.steps] == [
        [0, 0, 0, 0],
        [0, 0, 0, 1],
        [0, 0, 1, 2],
        [0, 1, 2, 3],
    ]


# --- Averages -----------------------------------------------------------------------------------


@pytest.mark.usually("transfer")
@MAKERS
def test_averages_at_the_end_of_fit_go_to_their_own_variables(make):
    # Stage "top" ends `fit` with the base frozen. Keras pairs averages by position: a kernel
    # of `mid`, which has the shape of `top`'s, would land in `top` without a word.
    model = toys.compiled(make(), keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.5))
    before = model.get_weights()
    plan = ktf.UnfreezingPlan(toys.PLAN.stages[:2])
    seen = Averages()
    toys.fit(model, plan, [seen], batch_size=4)
    for old, new in zip(before[:4], model.get_weights()[:4], strict=True):
        np.testing.assert_array_equal(new, old)
    for average, last, new in zip(seen.averages, seen.last, model.get_weights(), strict=True):
        np.testing.assert_allclose(new, last if average is None else average, atol=1e-6)
    far = [np.abs(a - w).max() for a, w in zip(seen.averages[4:], seen.last[4:], strict=True)]
    assert min(far) > 1e-5, "averages that equal the weights prove nothing"


class Averages(keras.callbacks.Callback):
    """Averages weights from the step at which they first move, with a momentum of 0.5."""

    def on_train_begin(self, logs=None):
        self.last = self.model.get_weights()
        self.averages = [None] * len(self.last)

    def on_train_batch_end(self, batch, logs=None):
        now = self.model.get_weights()
        for i, (old, new) in enumerate(zip(self.last, now, strict=True)):
            if self.averages[i] is not None:
                self.averages[i] = 0.5 * self.averages[i] + 0.5 * new
            elif not np.array_equal(old, new):
                self.averages[i] = new
        self.last = now


def test_with_averages_frozen_groups_stay_and_training_ones_move_at_every_boundary():
    options = {"use_ema": True, "ema_momentum": 0.9}
    model = toys.compiled(toys.transfer(), keras.optimizers.Adam(1e-2, **options))
    assert toys.fit(model, toys.EVERY_BOUNDARY) == toys.EXPECTED_AT_EVERY_BOUNDARY


# --- Variables that no stage trains -------------------------------------------------------------


def with_lora(make):
    model = make()
    body = model.backbone.model if make is toys.transfer else model.layers[0]
    body.get_layer("mid").enable_lora(2)
    return model, body.get_layer("mid")


@pytest.mark.usually("stock-True")
@pytest.mark.parametrize(("make", "froze_first"), [(toys.stock, True), (toys.transfer, False)])
def test_the_kernel_under_lora_stays_and_its_update_trains(make, froze_first):
    model, layer = with_lora(make)
    if froze_first:
        model.layers[0].trainable = False
    kernel, update = layer.weights[0].numpy(), layer.lora_kernel_b.numpy()
    toys.fit(toys.compiled(model), toys.TWO_STAGES)
    np.testing.assert_array_equal(layer.weights[0].numpy(), kernel)
    assert not layer.weights[0].trainable
    assert not np.array_equal(layer.lora_kernel_b.numpy(), update)


class Shifted(keras.layers.Layer):
    """Adds an offset that trains and one that was made not to."""

    def build(self, shape):
        self.free = self.add_weight(shape=shape[1:], initializer="zeros", name="free")
        self.fixed = self.add_weight(
            shape=shape[1:], initializer="ones", trainable=False, name="fixed"
        )

    def call(self, x):
        return x + self.free + self.fixed


def test_a_variable_made_not_to_train_stays():
    shifted = Shifted(name="shifted")
    body = keras.Sequential([keras.Input((6,)), keras.layers.Dense(8, name="stem"), shifted])
    model = keras.Sequential([body, keras.layers.Dense(3, "softmax", name="new")])
    plan = ktf.UnfreezingPlan([ktf.Stage("all", depth="all", epochs=1)])
    toys.fit(toys.compiled(model), plan)
    assert shifted.free.numpy().any()
    np.testing.assert_array_equal(shifted.fixed.numpy(), np.ones(8))
    assert not shifted.fixed.trainable
