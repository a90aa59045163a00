"""A checkpoint of another run is refused in words; what cannot be exact is said at the start."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_transfer as ktf
from keras_transfer import _fit_checks
from keras_transfer._one_training import Resuming
from keras_transfer.features._openings import CountedOpenings
from tests.reliability import runs

X, Y = runs.data()
PROBE = ktf.UnfreezingPlan([ktf.Stage("probe", depth=1, epochs=1)])
Data = tf.data.Dataset


def transfer(
    units=5, optimizer="adam", loss="mse", activation=None, rate=0.1, dtype=None, **backbone
):
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(0)
    stem = keras.layers.Dense(units, activation, name="stem", dtype=dtype)
    body = keras.Sequential(
        [keras.Input((4,)), stem, keras.layers.Dropout(rate), keras.layers.Dense(units, name="b2")],
        name="b",
    )
    head = ktf.layers.RegressionHead(2, pooling=None, name="head")
    model = ktf.TransferModel(ktf.layers.PretrainedBackbone(body, **backbone), head)
    model.compile(optimizer, loss)
    return model


def loss_scaled():
    return keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam())


def fit(directory, model=None, x=X, y=Y, plan=PROBE, callbacks=(), **options):
    model = transfer() if model is None else model
    carriers = [] if plan is None else [ktf.callbacks.GradualUnfreezing(plan, verbose=0)]
    save_freq = options.pop("save_freq", "epoch")
    resumable = ktf.callbacks.ResumableTraining(directory, save_freq)
    return model.fit(x, y, verbose=0, callbacks=[*carriers, resumable, *callbacks], **options)


LONGER = ktf.UnfreezingPlan([ktf.Stage("probe", depth=1, epochs=2)])
OTHERS = {
    "plan": (lambda: {"plan": LONGER}, r"plan.stages\[0\].epochs is 1 in the checkpoint and 2"),
    "no plan": (lambda: {"plan": None}, "plan is .* in the checkpoint and None here"),
    "model": (
        lambda: {"model": transfer(units=6)},
        r"model.b/stem/kernel is '\(4, 5\) float32' in",
    ),
    "optimizer": (lambda: {"model": transfer(optimizer="sgd")}, "optimizer.class is 'Adam' in"),
    "rate": (
        lambda: {"model": transfer(optimizer=keras.optimizers.Adam(0.5))},
        "optimizer.learning_rate is 0.001",
    ),
    "clipping": (
        lambda: {"model": transfer(optimizer=keras.optimizers.Adam(clipnorm=1.0))},
        "optimizer.clipnorm is None in the checkpoint and 1.0 here",
    ),
    "loss scaling": (
        lambda: {"model": transfer(optimizer=loss_scaled())},
        "optimizer.loss scaling is False in the checkpoint and True",
    ),
    "loss": (lambda: {"model": transfer(loss="mae")}, "compile.loss is 'mse' in the"),
    "activation": (
        lambda: {"model": transfer(activation="relu")},
        r"config\.backbone\..*activation is 'linear' in",
    ),
    "dropout": (lambda: {"model": transfer(rate=0.2)}, "rate is 0.1 in the checkpoint and 0.2"),
    "precision": (
        lambda: {"model": transfer(dtype="mixed_bfloat16")},
        "dtype.*name is 'float32' in the checkpoint and 'mixed_bfloat16'",
    ),
    "groups": (
        lambda: {"model": transfer(groups="blocks")},
        "groups is .auto. in the checkpoint and .blocks. here",
    ),
    "BatchNorm": (
        lambda: {"model": transfer(batch_norm="train")},
        "batch_norm is 'inference' in the checkpoint and 'train' here",
    ),
    "values of the data": (lambda: {"x": X + 1}, "data.fingerprint is"),
    "length of the data": (lambda: {"x": X[:6], "y": Y[:6]}, "data.fingerprint is"),
    "batch size": (lambda: {"batch_size": 2}, "data.steps_per_epoch is 1 in the checkpoint and 4"),
    "kind of data": (
        lambda: {"x": Data.from_tensor_slices((X, Y)).batch(8), "y": None},
        "data.element_spec is not in the checkpoint",
    ),
}


@pytest.mark.usually("plan", "model", "optimizer", "groups", "values of the data")
@pytest.mark.parametrize("name", OTHERS)
def test_a_checkpoint_of_another_run_is_an_error_that_names_the_difference(name, tmp_path):
    fit(tmp_path)
    files = {path: path.read_bytes() for path in tmp_path.iterdir()}
    options, message = OTHERS[name]
    given = options()
    model = given.get("model") or transfer()
    weights = model.get_weights()
    with pytest.raises(ValueError, match=f"belongs to another run: .*{message}") as error:
        fit(tmp_path, **{"model": model, **given})
    assert "directory of its own" in str(error.value)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == files
    for before, after in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)


class Squared:
    """A loss that Keras cannot save."""

    def __call__(self, y_true, y_pred, sample_weight=None):
        return keras.ops.mean((y_true - y_pred) ** 2)


class Fourth(Squared):
    pass


def test_losses_that_cannot_be_saved_are_told_apart_by_their_class(tmp_path):
    fit(tmp_path, transfer(loss=Squared()))
    with pytest.raises(ValueError, match=r"loss is 'Squared' in the checkpoint and 'Fourth'"):
        fit(tmp_path, transfer(loss=Fourth()))


def test_a_run_that_has_ended_returns_at_once(tmp_path, capsys):
    first = transfer()
    history = fit(tmp_path, first, epochs=1).history
    again = transfer()
    steps = []
    counter = keras.callbacks.LambdaCallback(on_train_batch_begin=lambda b, logs: steps.append(b))
    np.testing.assert_equal(fit(tmp_path, again, callbacks=[counter]).history, history)
    assert steps == []
    assert "This run has ended" in capsys.readouterr().out
    for one, other in zip(first.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert again.optimizer.group_steps == first.optimizer.group_steps


def test_a_run_that_is_given_more_epochs_goes_on(tmp_path):
    whole = transfer()
    options = {"plan": LONGER, "cache_features": False}
    history = fit(tmp_path / "whole", whole, **options).history
    for epochs in (1, 2):
        part = transfer()
        continued = fit(tmp_path / "parts", part, epochs=epochs, **options).history
    np.testing.assert_equal(continued, history)
    for one, other in zip(whole.get_weights(), part.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def stop_within(epoch, step):
    def on_train_batch_end(self, batch, logs=None):
        if (self.epoch, batch) == (epoch, step):
            self.model.stop_training = True

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    hooks = {"on_train_batch_end": on_train_batch_end, "on_epoch_begin": on_epoch_begin}
    return type("Stop", (KeptCounter,), hooks)()


@pytest.mark.exhaustive
def test_a_stop_within_an_epoch_is_heard_by_the_run_that_goes_on(tmp_path):
    longer = {"plan": None, "epochs": 3, "batch_size": 2, "save_freq": 1}
    whole = transfer()
    fit(tmp_path / "whole", whole, callbacks=[stop_within(1, 1)], **longer)
    part = transfer()

    class Killed(KeptCounter):
        def on_test_begin(self, logs=None):
            if self.model.stop_training:
                raise InterruptedError

    validation = {"validation_data": (X, Y)}
    with pytest.raises(InterruptedError):
        fit(tmp_path, part, callbacks=[stop_within(1, 1), Killed()], **longer, **validation)
    part = transfer()
    Killed.on_test_begin = KeptCounter.on_test_begin
    fit(tmp_path, part, callbacks=[stop_within(1, 1), Killed()], **longer, **validation)
    assert int(part.optimizer.iterations.numpy()) == int(whole.optimizer.iterations.numpy())
    for one, other in zip(whole.get_weights(), part.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_state_of_a_callback_that_is_missing_is_an_error(tmp_path):
    early = keras.callbacks.EarlyStopping("loss", patience=5)
    fit(tmp_path, callbacks=[early])
    with pytest.raises(ValueError, match=r"holds the state of EarlyStopping.*no such callback"):
        fit(tmp_path)


class Counter(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.epochs = 0

    def on_epoch_end(self, epoch, logs=None):
        self.epochs += 1


class KeptCounter(Counter):
    def get_state(self):
        return {"epochs": self.epochs, "array": np.arange(self.epochs)}

    def set_state(self, state):
        self.epochs = state["epochs"]
        np.testing.assert_array_equal(state["array"], np.arange(self.epochs))


def test_a_callback_of_the_user_keeps_its_own_state_or_is_named(tmp_path):
    kept = KeptCounter()
    fit(tmp_path / "kept", callbacks=[KeptCounter()])
    fit(tmp_path / "kept", callbacks=[kept])
    assert kept.epochs == 1
    with pytest.warns(UserWarning, match="The state of Counter is not kept"):
        fit(tmp_path / "named", callbacks=[Counter()])


def numbers(seed=None, **options):
    return Data.from_tensor_slices((X, Y)).shuffle(12, seed=seed, **options).batch(4)


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return 3

    def __getitem__(self, index):
        return X[4 * index : 4 * index + 4], Y[4 * index : 4 * index + 4]


class Reordered(Batches):
    def on_epoch_end(self):
        pass


def endless():
    while True:
        yield X, Y


NOT_EXACT = {
    "shuffle without a seed": (numbers, {}, "the data set is shuffled without a seed"),
    "random numbers": (
        lambda: Data.from_tensor_slices((X, Y)).map(
            lambda x, y: (x + tf.random.normal((4,)), y)
        ).batch(4),
        {},
        "draws random numbers",
    ),
    "a generator": (endless, {"steps_per_epoch": 2}, "steps_per_epoch"),
    "a shuffled PyDataset": (Batches, {}, "draws its order as it goes"),
    "a PyDataset of its own mind": (Reordered, {"shuffle": False}, "Reordered.on_epoch_end"),
    "repeat": (lambda: numbers(3).repeat(2), {}, "repeat after shuffle"),
    "concatenate": (lambda: numbers(3).concatenate(numbers(4)), {}, "concatenate after shuffle"),
    "any order": (
        lambda: numbers(3).map(lambda x, y: (x, y), 2, deterministic=False),
        {},
        "deterministic=False",
    ),
    "validation": (
        lambda: numbers(3),
        {"validation_data": numbers(4)},
        "the validation data is shuffled",
    ),
    "a generator for validation": (
        lambda: numbers(3),
        {"validation_data": endless(), "validation_steps": 2},
        "of the validation data: a generator",
    ),
}  # fmt: skip
EXACT = {
    "no shuffle": (lambda: Data.from_tensor_slices((X, Y)).batch(4), {}),
    "a seed": (lambda: numbers(seed=3), {}),
    "a PyDataset": (Batches, {"shuffle": False}),
    "validation": (
        lambda: numbers(seed=3),
        {"validation_data": Data.from_tensor_slices((X, Y)).batch(4)},
    ),
    "validation arrays": (lambda: numbers(seed=3), {"validation_data": (X, Y)}),
}


def fit_once(directory, make, options):
    model = transfer()
    tf.random.set_seed(None)  # `shuffle` without a seed has none
    return fit(directory, model, make(), None, cache_features=False, **options)


@pytest.mark.usually(
    "shuffle without a seed", "random numbers", "a generator", "a shuffled PyDataset", "any order"
)
@pytest.mark.parametrize("name", NOT_EXACT)
@pytest.mark.filterwarnings("ignore:`shuffle=True` was passed")
def test_what_cannot_be_exact_is_said_at_the_start(name, tmp_path, capsys):
    make, options, reason = NOT_EXACT[name]
    fit_once(tmp_path, make, options)
    printed = capsys.readouterr().out
    assert "A resumed run will see its data in another order: " in printed
    assert reason in printed


@pytest.mark.usually("a seed", "a PyDataset")
@pytest.mark.parametrize("name", EXACT)
@pytest.mark.filterwarnings("ignore:`shuffle=True` was passed")
def test_nothing_is_said_where_it_is_exact(name, tmp_path, capsys):
    make, options = EXACT[name]
    fit_once(tmp_path, make, options)
    assert "another order" not in capsys.readouterr().out


def test_a_data_set_goes_on_with_the_order_it_would_have_had():
    def order(dataset):
        return [batch[1].numpy().tolist() for batch in dataset]

    unbroken = CountedOpenings(numbers(seed=4))
    orders = [order(unbroken.dataset) for _ in range(4)]
    assert len({str(one) for one in orders}) == 4
    for past in range(4):
        resumed = CountedOpenings(numbers(seed=4))
        resumed.advance_to(past)
        assert order(resumed.dataset) == orders[past]
        assert resumed.count == past + 1


REFUSED = {
    "a stock model": (
        lambda: keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]),
        {"plan": None, "save_freq": 2},
        "On a stock model training can go on where an epoch begins only",
    ),
    "a data set": (
        transfer,
        {"x": Data.from_tensor_slices((X, Y)).batch(4), "y": None, "save_freq": 2},
        "only where the order of examples is the package's own.*Stage 'probe'",
    ),
    "BackupAndRestore": (
        transfer,
        {"callbacks": [keras.callbacks.BackupAndRestore("backup")]},
        "was given `ResumableTraining` and `BackupAndRestore`",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_work_is_refused_before_anything_trains(name, tmp_path, empty_folder):
    make, options, message = REFUSED[name]
    model = make()
    if not isinstance(model, ktf.TransferModel):
        model.compile("adam", "mse")
    weights = model.get_weights()
    with pytest.raises(ValueError, match=message):
        fit(tmp_path, model, **options)
    for before, after in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"directory": 3}, TypeError, "`directory` must be a path. Received: directory=3"),
        ({"save_freq": "step"}, ValueError, "`save_freq` must be 'epoch' or a number of steps"),
        ({"save_freq": 0}, ValueError, "`save_freq` must be at least 1"),
        ({"save_freq": 1.5}, TypeError, "`save_freq` must be a whole number"),
        ({"keep": 0}, ValueError, "`keep` must be at least 1"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        ktf.callbacks.ResumableTraining(**{"directory": "kept", **arguments})


def test_it_is_found_by_what_it_can_do():
    callback = ktf.callbacks.ResumableTraining("kept")
    assert isinstance(callback, Resuming)
    assert not isinstance(ktf.callbacks.GradualUnfreezing(PROBE), Resuming)
    assert _fit_checks.plan_carrier([callback]) is None
