"""AutoSurgical: rates from relative gradient norms, and nothing else is touched."""

import copy

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_transfer as ktf
from keras_transfer.callbacks import AutoSurgical, GradualUnfreezing
from keras_transfer.optimizers import find_discriminative
from tests.callbacks import toys
from tests.processes import run_in_child

PLAN = ktf.UnfreezingPlan(
    [ktf.Stage("probe", depth=1, epochs=1), ktf.Stage("top", depth=2, epochs=2)]
)


def linear(optimizer="sgd", scale=1.0):
    """Two linear groups, of which the gradients are known in closed form."""
    backbone = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="stem")])
    head = keras.layers.Dense(1, name="top", use_bias=False)
    model = ktf.TransferModel(backbone, head)
    model.compile(optimizer, "mse")
    random = np.random.default_rng(0)
    model.set_weights([scale * random.normal(size=w.shape) for w in model.get_weights()])
    return model


def linear_data(count=12):
    random = np.random.default_rng(1)
    return random.normal(size=(count, 3)).astype("float32"), random.normal(size=(count, 1))


def norms_by_hand(model, x, y):
    kernel, bias, top = (np.array(w, "float64") for w in model.get_weights())
    hidden = x @ kernel + bias
    error = 2 * (hidden @ top - y) / len(x)
    stem = [x.T @ (error @ top.T), (error @ top.T).sum(axis=0)]

    def norm(arrays):
        return np.sqrt(sum((a**2).sum() for a in arrays))

    return {
        "stem": norm(stem) / norm([kernel, bias]),
        "top": norm([hidden.T @ error]) / norm([top]),
    }


class Recorder(keras.callbacks.Callback):
    def on_train_begin(self, logs=None):
        self.multipliers, self.functions = [], []

    def on_train_batch_begin(self, batch, logs=None):
        self.multipliers.append(find_discriminative(self.model.optimizer).multipliers)
        self.functions.append(self.model.train_function)


# --- The rates --------------------------------------------------------------------------------


@pytest.mark.usually("5.0")
@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_multipliers_are_relative_gradient_norms_over_the_largest(scale):
    model, (x, y) = linear(scale=scale), linear_data()
    norms = norms_by_hand(model, x, y)
    recorder = Recorder()
    surgical = AutoSurgical((x, y), batches=1, verbose=0)
    model.fit(x, y, batch_size=12, verbose=0, callbacks=[surgical, recorder])
    expected = {name: norm / max(norms.values()) for name, norm in norms.items()}
    assert recorder.multipliers[0] == pytest.approx(expected, rel=1e-4)
    assert min(expected.values()) < 0.8


def test_the_mean_is_taken_over_batches_of_data_sets_and_weights_move_by_the_rates(capsys):
    model, (x, y) = linear(), linear_data(12)
    parts = [norms_by_hand(model, x[i : i + 4], y[i : i + 4]) for i in (0, 4, 8)]
    norms = {name: np.mean([part[name] for part in parts]) for name in ("stem", "top")}
    expected = {name: norm / max(norms.values()) for name, norm in norms.items()}
    model.optimizer.learning_rate = 0.01
    before = model.get_weights()
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(4)
    history = model.fit(x, y, batch_size=12, callbacks=[AutoSurgical(dataset, 3)], verbose=0)
    after = model.get_weights()
    for name in ("stem", "top"):
        rate = history.history[f"learning_rate/{name}"][0]
        assert rate == pytest.approx(0.01 * expected[name], rel=1e-4)
    kernel, bias, top = (np.array(w, "float64") for w in before)
    error = 2 * ((x @ kernel + bias) @ top - y) / len(x)
    step = 0.01 * expected["stem"] * (x.T @ (error @ top.T))
    np.testing.assert_allclose(before[0] - after[0], step, atol=1e-6)
    assert "Epoch 1: learning rates times stem " in capsys.readouterr().out
    assert model.optimizer.multipliers == {"stem": 1.0, "top": 1.0}


def test_norm_layers_do_not_count():
    layers = [keras.layers.Dense(2, name="stem"), keras.layers.LayerNormalization(name="norm")]
    backbone = keras.Sequential([keras.Input((3,)), *layers])
    model = ktf.TransferModel(backbone, keras.layers.Dense(1, name="top"), groups=1)
    model.compile("sgd", "mse")
    layers[1].gamma.assign([5.0, 7.0])
    data = linear_data()
    with tf.GradientTape() as tape:
        loss = keras.ops.mean((model(data[0]) - data[1]) ** 2)
    gradients = [g.numpy() for g in tape.gradient(loss, [v.value for v in model.weights])]

    def ratio(*numbers):
        squares = [(gradients[i] ** 2).sum() for i in numbers]
        return np.sqrt(sum(squares) / sum((model.get_weights()[i] ** 2).sum() for i in numbers))

    recorder = Recorder()
    expected = ratio(0, 1) / ratio(4, 5)
    counted = ratio(0, 1, 2, 3) / ratio(4, 5)
    model.fit(*data, verbose=0, callbacks=[AutoSurgical(data, 1, verbose=0), recorder])
    found = recorder.multipliers[0]
    assert found["stem"] / found["top"] == pytest.approx(expected, rel=1e-3)
    assert abs(counted / expected - 1) > 0.1


# --- What is left alone -------------------------------------------------------------------------


def test_the_train_step_is_not_traced_anew_and_the_optimizers_state_stays():
    traces = []

    class Counting(ktf.TransferModel):
        def train_step(self, data):
            traces.append(data)  # runs while it is traced only
            return super().train_step(data)

    head = keras.layers.Dense(3, "softmax", name="new")
    model = toys.compiled(Counting(toys.backbone(), head, groups="blocks"))
    states = []

    class State(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            values = self.model.optimizer.variables
            states.append({v.path: v.numpy().tobytes() for v in values})

    data = toys.data(model)
    recorder = Recorder()
    surgical = AutoSurgical(data, 2, batch_size=8, verbose=0)
    model.fit(
        *data, batch_size=4, epochs=3, verbose=0, callbacks=[State(), surgical, State(), recorder]
    )
    for before, after in zip(states[::2], states[1::2], strict=True):
        changed = {path for path, value in after.items() if before[path] != value}
        assert len(after) > 16
        assert all(path.endswith("multipliers") for path in changed)
    assert len(set(map(id, recorder.functions))) == 1
    assert len(traces) == 1
    assert recorder.multipliers[0] != recorder.multipliers[-1]  # or nothing was set


def test_where_one_group_trains_the_run_is_the_one_without_it_bit_for_bit():
    """Its rate is times 1: what is left is data order, dropout, metrics, and statistics."""
    weights, histories = [], []
    for surgical in (False, True):
        keras.utils.clear_session(free_memory=False)
        keras.utils.set_random_seed(0)
        head = ktf.layers.ClassificationHead(3, dropout=0.5)
        model = toys.compiled(ktf.TransferModel(toys.backbone(), head), metrics=["accuracy"])
        model.freeze()
        data = toys.data(model)
        callbacks = [AutoSurgical(data, 2, verbose=0)] if surgical else []
        found = model.fit(*data, batch_size=4, epochs=2, verbose=0, callbacks=callbacks)
        weights.append([w.tobytes() for w in model.get_weights()])
        histories.append({k: found.history[k] for k in ("loss", "accuracy")})
    assert weights[0] == weights[1]
    assert histories[0] == histories[1]


# --- Beside a plan, and on stock models -------------------------------------------------------


@pytest.mark.usually("transfer")
@pytest.mark.parametrize("make", [toys.stock, toys.transfer])
def test_beside_a_plan_it_works_on_the_groups_of_the_stage(make):
    model = toys.compiled(make())
    recorder = Recorder()
    data = toys.data(model)
    callbacks = [toys.unfreezing(model, PLAN), AutoSurgical(data, 1, verbose=0), recorder]
    history = model.fit(*data, epochs=3, verbose=0, callbacks=callbacks).history
    assert recorder.multipliers[0] == dict.fromkeys(("stem", "mid", "top", "new"), 1.0)
    for multipliers in recorder.multipliers[1:]:
        assert max(multipliers["top"], multipliers["new"]) == 1.0
        assert min(multipliers["top"], multipliers["new"]) < 1.0
        assert multipliers["stem"] == multipliers["mid"] == 1.0  # frozen: left alone
    assert np.isnan(history["learning_rate/top"][0])
    rates = [history[f"learning_rate/{name}"][2] for name in ("top", "new")]
    assert min(rates) < max(rates) == pytest.approx(1e-3)
    name = "DiscriminativeOptimizer" if make is toys.transfer else "Adam"
    assert type(model.optimizer).__name__ == name


def test_alone_on_a_stock_model_it_gives_the_optimizer_back():
    model = toys.compiled(toys.stock())
    data = toys.data(model)
    surgical = AutoSurgical(data, 1, groups="blocks", verbose=0)
    history = model.fit(*data, epochs=2, verbose=0, callbacks=[surgical]).history
    rates = [history[f"learning_rate/{name}"][1] for name in ("stem", "mid", "top", "new")]
    assert max(rates) == pytest.approx(1e-3)
    assert len(set(rates)) == 4
    assert type(model.optimizer) is keras.optimizers.Adam
    assert int(model.optimizer.iterations.numpy()) == 2
    assert len(model.fit(*data, verbose=0).history["loss"]) == 1


@pytest.mark.exhaustive
def test_a_run_resumed_within_an_epoch_goes_on_with_its_rates(tmp_path):
    def run(*more, epochs=2):
        keras.utils.clear_session(free_memory=False)
        keras.utils.set_random_seed(0)
        model = toys.compiled(toys.transfer())
        data = toys.data(model)
        callbacks = [AutoSurgical(data, 1, batch_size=8, verbose=0), *more]
        model.fit(*data, batch_size=4, epochs=epochs, verbose=0, callbacks=callbacks)
        return model.get_weights()

    def kill(batch, logs):
        if batch == 2:
            raise KeyboardInterrupt

    expected = run()
    with pytest.raises(KeyboardInterrupt):
        run(
            ktf.callbacks.ResumableTraining(tmp_path / "run", save_freq=1, verbose=0),
            keras.callbacks.LambdaCallback(on_train_batch_begin=kill),
        )
    resumed = run(ktf.callbacks.ResumableTraining(tmp_path / "run", save_freq=1, verbose=0))
    for a, b in zip(expected, resumed, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_copy_shares_the_data_and_leaves_the_run_behind():
    data = linear_data()
    surgical = AutoSurgical(data, 1, batch_size=4, groups=2, head="h", verbose=0)
    model = linear()
    copied = copy.deepcopy(surgical)
    assert copied.data is surgical.data
    names = ("batches", "batch_size", "groups", "head", "verbose")
    assert all(getattr(copied, name) == getattr(surgical, name) for name in names)
    once = AutoSurgical(data, 1, verbose=0)
    model.fit(*data, verbose=0, callbacks=[once])
    assert copy.deepcopy(once)._state is None


@pytest.mark.distributed
def test_on_two_replicas_the_rates_are_those_of_one():
    (found,) = run_in_child("tests.replicas.surgical")
    assert found["replicas"] == 2
    assert found["two"] == pytest.approx(found["one"], rel=1e-4)
    assert min(found["one"]) < 0.9
    assert found["optimizer"] == "Adam"


# --- Bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((3,), {}, TypeError, "`data` must be a tuple of arrays"),
        ((linear_data(), 0), {}, ValueError, "`batches` must be at least 1"),
        ((linear_data(),), {"batch_size": 0}, ValueError, "`batch_size` must be at least 1"),
        (((np.full((3, 3), np.nan), np.ones(3)),), {}, ValueError, "`data` must be finite"),
    ],
)
def test_bad_arguments_are_an_error_where_they_are_given(arguments, options, error, message):
    with pytest.raises(error, match=message):
        AutoSurgical(*arguments, **options)


def refuse(message, model, *callbacks, epochs=1):
    data = toys.data(model)
    callbacks = [one(data) if one is AutoSurgical else one for one in callbacks]
    with pytest.raises(ValueError, match=message):
        model.fit(*data, epochs=epochs, verbose=0, callbacks=callbacks)


def test_plans_that_set_rates_too_or_come_later_are_an_error():
    model = toys.compiled(toys.transfer())
    after = GradualUnfreezing(ktf.recipes.linear_probe(1), verbose=0)
    refuse("must come after `GradualUnfreezing` in `callbacks`", model, AutoSurgical, after)
    decaying = GradualUnfreezing(ktf.recipes.full_fine_tuning(1, lr_decay=0.5), verbose=0)
    refuse("Stage 'all' sets `lr_decay`, and `AutoSurgical` sets", model, decaying, AutoSurgical)
    surgical = AutoSurgical(toys.data(model), groups="blocks")
    refuse("`groups` is for a stock model without a plan", model, surgical)


def test_gradients_that_say_nothing_are_an_error():
    model = toys.compiled(toys.transfer())
    model.head.set_weights([np.zeros_like(w) for w in model.head.get_weights()])
    refuse("The weights of layer group 'new' are all 0", model, AutoSurgical)
    model.head.set_weights([np.full_like(w, np.nan) for w in model.head.get_weights()])
    refuse("The gradient of layer group 'stem' is not finite", model, AutoSurgical)


def test_data_that_says_nothing_of_the_task_is_an_error():
    x, y = linear_data()
    empty = tf.data.Dataset.from_tensor_slices((x[:0], y[:0])).batch(4)
    refuse("`data` is empty", linear(), AutoSurgical(empty))
    backbone = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model = ktf.TransferModel(backbone, ktf.layers.ClassificationHead(2))
    model.compile("sgd", "sparse_categorical_crossentropy")
    ids = np.arange(len(x)) % 2
    surgical = AutoSurgical((x, ids + 1), verbose=0)
    with pytest.raises(ValueError, match="labels in `data` run from 1 to 2"):
        model.fit(x, ids, callbacks=[surgical], verbose=0)
