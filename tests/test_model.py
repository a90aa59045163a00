import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_transfer as ktf


def backbone():
    return keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(8, "tanh", name="stem"),
            keras.layers.Dense(8, "tanh", name="top"),
        ]
    )


def transfer(**kwargs):
    model = ktf.TransferModel(
        backbone(), keras.layers.Dense(3, "softmax", name="new"), groups="blocks", **kwargs
    )
    model.compile("adam", "sparse_categorical_crossentropy")
    return model


def flags(model):
    return [v.trainable for v in model.layer_groups.variables]


def data():
    return np.random.normal(size=(16, 6)).astype("float32"), np.arange(16) % 3


@pytest.mark.usually("-2", "0", "1")
@pytest.mark.parametrize("n", range(-3, 3))
def test_freeze_to_freezes_the_groups_below_and_moves_those_above(n):
    x, y = data()
    model = transfer()
    model.freeze_to(n)
    before = model.get_weights()
    model.fit(x, y, verbose=0)
    moved = [not np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True)]
    assert moved == [index >= 2 * (n % 3) for index in range(6)]


def test_freezing_between_two_fits_takes_effect_without_recompiling():
    x, y = data()
    model = transfer()
    model.freeze()
    model.fit(x, y, verbose=0)
    model.unfreeze()
    before = model.get_weights()
    model.fit(x, y, verbose=0)
    assert all(not np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))


def moved_by(model, train):
    before = model.get_weights()
    train()
    return [not np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True)]


HEAD_ALONE, ALL = [False] * 4 + [True] * 2, [True] * 6


def test_freezing_between_two_calls_of_train_on_batch_takes_effect():
    x, y = data()
    model = transfer()
    assert moved_by(model, lambda: model.train_on_batch(x, y)) == ALL
    model.freeze()
    assert moved_by(model, lambda: model.train_on_batch(x, y)) == HEAD_ALONE
    model.fit(x, y, verbose=0)
    model.unfreeze()
    assert moved_by(model, lambda: model.train_on_batch(x, y)) == ALL
    assert list(model.optimizer.group_steps.values()) == [2, 2, 4]


def test_unfreezing_takes_effect_in_train_on_batch_after_a_frozen_fit():
    x, y = data()
    model = transfer()
    model.freeze()
    model.fit(x, y, verbose=0)
    model.unfreeze()
    assert moved_by(model, lambda: model.train_on_batch(x, y)) == ALL
    model.freeze()
    assert moved_by(model, lambda: model.fit(x, y, verbose=0)) == HEAD_ALONE


class FreezesAfterTheFirstStep(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        if batch == 0:
            self.model.freeze()
            self.frozen = self.model.get_weights()


def test_a_callback_of_the_users_may_freeze_within_fit():
    x, y = data()
    model, freezes = transfer(), FreezesAfterTheFirstStep()
    start = model.get_weights()
    model.fit(x, y, batch_size=8, verbose=0, callbacks=[freezes], cache_features=False)
    after_one = [not np.array_equal(a, b) for a, b in zip(start, freezes.frozen, strict=True)]
    later = zip(freezes.frozen, model.get_weights(), strict=True)
    assert after_one == ALL
    assert [not np.array_equal(a, b) for a, b in later] == HEAD_ALONE


class FreezesByHand(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        self.model.backbone.trainable = False
        self.model.make_train_function(force=True)


def test_flags_that_a_callback_changed_by_hand_are_not_believed_to_be_traced():
    x, y = data()
    model = transfer()
    options = {"batch_size": 8, "verbose": 0, "cache_features": False}
    model.fit(x, y, callbacks=[FreezesByHand()], **options)
    model.backbone.trainable = True
    assert moved_by(model, lambda: model.fit(x, y, **options)) == ALL


@pytest.mark.parametrize("n", [3, -4])
def test_freezing_everything_is_an_error(n):
    with pytest.raises(ValueError, match=r"3 layer groups, of which at least one must train"):
        transfer().freeze_to(n)


def test_loading_weights_leaves_the_flags_alone(tmp_path):
    saved, model = transfer(), transfer()
    saved.freeze()
    saved.save_weights(tmp_path / "w.weights.h5")
    model.unfreeze()
    model.load_weights(tmp_path / "w.weights.h5")
    assert flags(model) == [True] * 6
    for a, b in zip(saved.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def other_backbone():
    return keras.Sequential([keras.Input((6,)), keras.layers.Dense(9, name="stem")])


@pytest.mark.parametrize(
    ("make_backbone", "units", "message"),
    [
        (
            other_backbone,
            3,
            r"for 3 of its layers \('stem', 'top', 'new'\)\. The file holds 93 parameters",
        ),
        (
            backbone,
            4,
            r"for 1 of its layers \('new'\)\. The file holds 164 parameters, the model 155",
        ),
    ],
)
def test_weights_of_another_architecture_are_an_error_and_none_is_loaded(
    tmp_path, make_backbone, units, message
):
    file = tmp_path / "w.weights.h5"
    saved = ktf.TransferModel(make_backbone(), keras.layers.Dense(units, name="new"), "blocks")
    saved.save_weights(file)
    model = transfer()
    before = model.get_weights()
    with pytest.raises(ValueError, match=message):
        model.load_weights(file)
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def deeper_backbone(name="extra"):
    return keras.Sequential(
        [keras.Input((6,)), *backbone().layers, keras.layers.Dense(8, name=name)]
    )


@pytest.mark.usually("True")
@pytest.mark.parametrize("fitted", [False, True])
def test_a_file_of_a_deeper_model_is_an_error_that_names_the_surplus(tmp_path, fitted):
    new = keras.layers.Dense(3, "softmax", name="new")
    saved = ktf.TransferModel(deeper_backbone(), new, "blocks")
    saved.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    if fitted:
        saved.fit(*data(), verbose=0)
    saved.save_weights(tmp_path / "w.weights.h5")
    model = transfer()
    before = model.get_weights()
    with pytest.raises(ValueError, match=r"holds 2 more arrays .*\(of the layers 'extra'\)"):
        model.load_weights(tmp_path / "w.weights.h5")
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the optimizer's state does not fit either
        model.load_weights(tmp_path / "w.weights.h5", skip_mismatch=True)
    np.testing.assert_array_equal(model.get_weights()[0], saved.get_weights()[0])


def test_names_that_keras_gave_do_not_keep_a_file_from_being_loaded(tmp_path):
    def numbered():
        layers = [keras.layers.Dense(8), keras.layers.BatchNormalization()]
        body = keras.Sequential([keras.Input((6,)), *layers, keras.layers.Dropout(0.1)])
        model = ktf.TransferModel(body, ktf.layers.ClassificationHead(3, dropout=0.1))
        model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
        model.fit(*data(), verbose=0)
        return model

    saved, model = numbered(), numbered()
    saved.save_weights(tmp_path / "w.weights.h5")
    model.load_weights(tmp_path / "w.weights.h5")
    for a, b in zip(saved.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_what_does_not_fit_may_be_skipped_as_in_keras(tmp_path):
    file = tmp_path / "w.weights.h5"
    saved = ktf.TransferModel(backbone(), keras.layers.Dense(4, name="new"), "blocks")
    saved.save_weights(file)
    model = transfer()
    with pytest.warns(UserWarning, match="could not be loaded"):
        model.load_weights(file, skip_mismatch=True)
    np.testing.assert_array_equal(model.get_weights()[0], saved.get_weights()[0])


def test_a_saved_model_keeps_a_flag_for_each_variable(tmp_path):
    model = transfer()
    biases = [v for v in model.layer_groups.variables if v.name == "bias"]
    for variable in model.layer_groups.variables:
        variable.trainable = any(variable is b for b in biases)
    model.save(tmp_path / "m.keras")
    assert flags(keras.models.load_model(tmp_path / "m.keras")) == [False, True] * 3


@keras.saving.register_keras_serializable(package="tests")
class Body(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.stem = keras.layers.Dense(8, "tanh", name="stem")
        self.top = keras.layers.Dense(8, "tanh", name="top")

    def call(self, x):
        return self.top(self.stem(x))


def test_a_saved_model_that_is_not_functional_keeps_its_flags_too(tmp_path):
    body = Body()
    body(np.ones((1, 6), "float32"))
    model = ktf.TransferModel(body, keras.layers.Dense(3, name="new"), groups="blocks")
    model(np.ones((1, 6), "float32"))
    model.freeze()
    model.save(tmp_path / "m.keras")
    assert flags(keras.models.load_model(tmp_path / "m.keras")) == [False] * 4 + [True] * 2


def batches(x, y):
    while True:
        yield x, y


def unbuilt():
    body = Body()
    body(np.ones((1, 6), "float32"))
    model = ktf.TransferModel(body, keras.layers.Dense(3, "softmax", name="new"), groups="blocks")
    model.compile("adam", "sparse_categorical_crossentropy")
    assert not model.built
    return model


@pytest.mark.usually("False")
@pytest.mark.parametrize("with_plan", [True, False])
def test_a_model_that_is_not_functional_is_built_on_arrays(with_plan):
    model = unbuilt()
    plan = ktf.recipes.lp_ft(1, 1)
    callbacks = [ktf.callbacks.GradualUnfreezing(plan, verbose=0)] if with_plan else None
    model.fit(*data(), verbose=0, callbacks=callbacks)
    assert list(model.optimizer.group_steps.values()) == [1, 1, 2 if with_plan else 1]


def test_a_model_that_is_not_built_cannot_be_built_on_a_generator():
    with pytest.raises(ValueError, match=r"Call the model once on a batch before `fit`\."):
        unbuilt().fit(batches(*data()), steps_per_epoch=1, verbose=0)


@keras.saving.register_keras_serializable(package="tests")
class Scaled(ktf.TransferModel):
    def build(self, input_shape):
        self.scale = self.add_weight(shape=(), initializer="ones", name="scale")
        super().build(input_shape)


def test_weights_of_a_subclass_are_saved_and_loaded(tmp_path):
    model = Scaled(backbone(), keras.layers.Dense(3, "softmax", name="new"), groups="blocks")
    model.scale.assign(7.0)
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    assert float(loaded.scale.numpy()) == 7.0


@keras.saving.register_keras_serializable(package="tests")
class WithParts(ktf.TransferModel):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.extra = keras.layers.Dense(1, name="extra")
        self.extra.build((None, 3))
        self.tracker = keras.metrics.Mean(name="tracked")


def test_a_subclass_may_have_layers_and_metrics_of_its_own(tmp_path):
    model = WithParts(backbone(), keras.layers.Dense(3, "softmax", name="new"), groups="blocks")
    assert "tracked" in [metric.name for metric in model.metrics]
    model.extra.kernel.assign(np.full((3, 1), 7.0))
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(loaded.extra.kernel.numpy(), model.extra.kernel.numpy())


def test_shapes_of_inputs_and_outputs_are_known_and_stand_in_the_table():
    model = transfer()
    assert (model.input_shape, model.output_shape) == ((None, 6), (None, 3))
    assert model.layer_groups[-1].output_shape == (None, 3)
    assert str(model.layer_groups).splitlines()[-1].split()[-3:] == ["(…,", "3)", "-"]


def test_shapes_of_a_model_that_is_not_functional_are_not_known():
    body = Body()
    body(np.ones((1, 6), "float32"))
    model = ktf.TransferModel(body, keras.layers.Dense(3, name="new"), groups="blocks")
    with pytest.raises(AttributeError, match="has no `output_shape`: its backbone 'body' is not"):
        _ = model.output_shape
    assert str(model.layer_groups).splitlines()[-1].split()[-2:] == ["?", "-"]


def test_inputs_reach_the_wrapped_model_in_their_own_precision():
    body = keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(
                6, use_bias=False, kernel_initializer="identity", dtype="float32", name="same"
            ),
        ]
    )
    keras.config.set_dtype_policy("mixed_float16")
    model = ktf.TransferModel(body, keras.layers.Identity(dtype="float32"))
    x = np.full((2, 6), 1.0001, "float32")  # float16 knows 1.0 and 1.001, and nothing between
    np.testing.assert_array_equal(model(x).numpy(), x)


def test_a_head_and_a_backbone_group_of_one_name_get_names_of_their_own():
    body = keras.Sequential(
        [keras.Input((4,)), *(keras.layers.Dense(4, name=n) for n in ("stem", "head"))]
    )
    model = ktf.TransferModel(body, keras.layers.Dense(2, name="head"), groups="blocks")
    assert model.layer_groups.names == ["stem", "head", "head_1"]


@pytest.mark.parametrize("as_data_set", [False, True])
def test_each_stage_traces_its_step_once(as_data_set):
    trained = []

    class Counting(keras.layers.Dense):
        def call(self, x, training=False):
            trained.append(1) if training else None
            return super().call(x)

    x, y = data()
    model = ktf.TransferModel(backbone(), Counting(3, "softmax"))
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    given = {"x": x, "y": y, "batch_size": 6}
    if as_data_set:
        given = {"x": tf.data.Dataset.from_tensor_slices((x, y)).batch(6), "shuffle": False}
    plan = ktf.recipes.lp_ft(probe_epochs=1, fine_tune_epochs=1)
    unfreezing = ktf.callbacks.GradualUnfreezing(plan, verbose=0)
    model.fit(**given, callbacks=[unfreezing], cache_features=False, verbose=0)
    assert len(trained) == 2


def test_metrics_that_cannot_be_made_before_the_first_step_are_made_in_it():
    class SumOfWeights(keras.metrics.Sum):
        def update_state(self, y_true, y_pred, sample_weight=None):
            super().update_state(keras.ops.convert_to_tensor(sample_weight))

    x, y = data()
    model = ktf.TransferModel(backbone(), keras.layers.Dense(3, "softmax"))
    model.compile(
        "adam", "sparse_categorical_crossentropy", weighted_metrics=[SumOfWeights(name="weights")]
    )
    unfreezing = ktf.callbacks.GradualUnfreezing(ktf.recipes.linear_probe(epochs=1), verbose=0)
    fitted = model.fit(
        x, y, class_weight={0: 2.0, 1: 2.0, 2: 2.0}, callbacks=[unfreezing], verbose=0
    )
    assert fitted.history["weights"] == [2.0 * len(x)]
