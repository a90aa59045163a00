"""What moves in each stage, for every kind of model, every group and each side of a boundary."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_transfer as ktf
from examples.pretrained.efficientnet_lite0 import efficientnet_lite0
from keras_transfer.callbacks import GradualUnfreezing
from tests.callbacks import toys


@pytest.mark.usually("stock", "transfer")
@pytest.mark.parametrize(
    "make", [toys.stock, toys.functional, toys.inlined, toys.subclassed, toys.transfer]
)
def test_each_stage_moves_its_groups_and_leaves_the_others_bit_for_bit(make):
    model = toys.compiled(make())
    assert toys.fit(model, toys.EVERY_BOUNDARY) == toys.EXPECTED_AT_EVERY_BOUNDARY


# More ways, without `fit`: tests/test_trainability.py.
@pytest.mark.usually("backbone")
@pytest.mark.parametrize("frozen", ["backbone", "its_variables", "head"])
def test_what_was_frozen_before_does_not_matter(frozen):
    model = toys.functional()
    body = model.get_layer("body")
    objects = {"backbone": [body], "its_variables": body.weights, "head": model.layers[-1:]}
    for one in objects[frozen]:
        one.trainable = False
    assert toys.fit(toys.compiled(model), toys.TWO_STAGES) == toys.EXPECTED_OF_TWO_STAGES


# --- A user's own train step ------------------------------------------------------------------


class Counted:
    """A train step that adds to Keras's own, with a variable that is not trained."""

    def build_counter(self):
        self.seen = self.add_weight(shape=(), initializer="zeros", trainable=False, name="seen")

    def train_step(self, data):
        self.seen.assign_add(1.0)
        return super().train_step(data)


class WithTape:
    """A train step written out, as Keras's guide has it, at twice the gradient."""

    def build_counter(self):
        self.seen = self.add_weight(shape=(), initializer="zeros", trainable=False, name="seen")

    def train_step(self, data):
        x, y = data
        self.seen.assign_add(1.0)
        with tf.GradientTape() as tape:
            loss = 2.0 * self.compute_loss(y=y, y_pred=self(x, training=True))
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        return {"loss": loss}


def with_step(step, base):
    return type(f"{step.__name__}{base.__name__}", (step, base), {})


def stock_with(step):
    inputs = keras.Input((6,))
    out = keras.layers.Dense(3, "softmax", name="new")(toys.backbone()(inputs))
    return with_step(step, keras.Model)(inputs, out)


def transfer_with(step):
    head = keras.layers.Dense(3, "softmax", name="new")
    return with_step(step, ktf.TransferModel)(toys.backbone(), head, groups="blocks")


@pytest.mark.usually("Counted-transfer_with", "WithTape-stock_with")
@pytest.mark.parametrize("make", [stock_with, transfer_with])
@pytest.mark.parametrize("step", [Counted, WithTape])
def test_a_users_own_train_step_goes_on_working(make, step):
    model = make(step)
    model.build_counter()
    moves = toys.fit(toys.compiled(model), toys.TWO_STAGES, batch_size=4)
    moved = [
        [m for m, v in zip(e, model.weights, strict=True) if v is not model.seen] for e in moves
    ]
    assert moved == toys.EXPECTED_OF_TWO_STAGES
    assert float(model.seen.numpy()) == 8.0


# --- Real architectures -------------------------------------------------------------------------


def names_that_moved(before, model):
    return {
        v.path for v, old in zip(model.weights, before, strict=True) if (v.numpy() != old).any()
    }


class Moved(keras.callbacks.Callback):
    """The paths of the weights that moved in each epoch."""

    def on_train_begin(self, logs=None):
        self.paths, self.before = [], self.model.get_weights()

    def on_epoch_end(self, epoch, logs=None):
        after = self.model.get_weights()
        rows = zip(self.model.weights, self.before, after, strict=True)
        self.paths.append({v.path for v, old, new in rows if not np.array_equal(old, new)})
        self.before = after


def images(count, size, scale=1.0):
    keras.utils.set_random_seed(0)
    return np.random.normal(scale=scale, size=(count, size, size, 3)).astype("float32")


def calibrated(model, x):
    """Gives BatchNorms the statistics of `x`: untrained ones shrink features to nothing."""
    norms = [la for la in model.layers if isinstance(la, keras.layers.BatchNormalization)]
    for layer in norms:
        momentum, layer.momentum = layer.momentum, 0.0
        layer.saved_momentum = momentum
    model(x, training=True)
    for layer in norms:
        layer.momentum = layer.saved_momentum
    assert np.std(model(x).numpy(), axis=0).mean() > 0.1, "features without spread prove nothing"
    return model


def check_groups_move(model, depths, x, y, **options):
    groups = model.layer_groups
    plan = ktf.UnfreezingPlan([ktf.Stage(f"top {d}", depth=d, epochs=1) for d in depths])
    seen = Moved()
    callbacks = [GradualUnfreezing(plan, verbose=0), seen]
    model.fit(x, y, len(x), verbose=0, callbacks=callbacks, **options)
    for depth, moved in zip(depths, seen.paths, strict=True):
        wanted = {v.path for group in groups[-depth:] for v in group.variables}
        assert moved == wanted, f"at depth {depth}"


@pytest.mark.exhaustive
def test_every_group_of_mobilenet_moves_from_its_stage_on():
    x = images(8, 32)
    backbone = keras.applications.MobileNetV2(
        weights=None, include_top=False, input_shape=(32, 32, 3), alpha=0.35
    )
    model = ktf.TransferModel(calibrated(backbone, x), ktf.layers.ClassificationHead(3))
    # Eager steps: six traces of the whole network would take a minute. That the traced step
    # changes too is seen on the toys above.
    toys.compiled(model, run_eagerly=True)
    assert len(model.layer_groups) == 6
    check_groups_move(model, range(1, 7), x, np.arange(8) % 3)


def test_groups_of_pretrained_efficientnet_move_from_their_stage_on():
    x = images(2, 32)
    backbone = efficientnet_lite0(include_top=False, input_shape=(32, 32, 3))
    assert np.ptp(backbone(x).numpy()) > 1.0
    model = ktf.TransferModel(backbone, ktf.layers.ClassificationHead(3))
    toys.compiled(model, run_eagerly=True)
    check_groups_move(model, [1, 2, len(model.layer_groups)], x, np.arange(2))
