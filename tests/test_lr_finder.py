import random

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras.src.backend.common.global_state import get_global_attribute
from tensorflow.python.eager.context import context

import keras_transfer as ktf
from keras_transfer import _keras_internals
from keras_transfer.lr_finder import find_lr
from keras_transfer.optimizers import discriminative, find_discriminative
from tests.processes import run_in_child

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(96, 6)).astype("float32")
Y = (X.sum(axis=1) > 0).astype("int32")
SHORT = {"num_steps": 20, "verbose": 0}


def make_backbone():
    return keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(8, name="stem"),
            keras.layers.BatchNormalization(name="bn"),
            keras.layers.Dense(8, "relu", name="middle"),
            keras.layers.Dropout(0.3, name="dropout"),
        ],
        name="backbone",
    )


def make_stock(optimizer="adam", **kwargs):
    head = keras.layers.Dense(2, "softmax", dtype="float32", name="top")
    model = keras.Sequential([make_backbone(), head])
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"], **kwargs)
    return model


def make_transfer(optimizer="adam", **kwargs):
    head = ktf.layers.ClassificationHead(2, name="top")
    model = ktf.TransferModel(make_backbone(), head, groups="blocks")
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"], **kwargs)
    return model


PLAN = ktf.UnfreezingPlan(
    [
        ktf.Stage("probe", depth=1, epochs=1, peak_lr=1e-2),
        ktf.Stage("top", depth=2, epochs=1, peak_lr=1e-3, lr_decay=0.25),
        ktf.Stage("all", depth="all", epochs=1, lr_decay=0.5, schedule="one_cycle"),
    ]
)


def everything(model):
    """All that a run could change, as one comparable value; `bytes` make equality exact."""
    optimizer = model.optimizer
    state = {f"model {i} {v.path}": v.numpy().tobytes() for i, v in enumerate(model.variables)}
    metrics = enumerate(model.metrics_variables)
    state |= {f"metric {i} {v.path}": v.numpy().tobytes() for i, v in metrics}
    state |= {
        f"optimizer {i} {v.path}": v.numpy().tobytes() for i, v in enumerate(optimizer.variables)
    }
    found = find_discriminative(optimizer)
    if found is not None:
        state |= {"steps": found.group_steps, "multipliers": found.multipliers}
    layers = _keras_internals.flatten_layers(model)
    keras_random = get_global_attribute("global_seed_generator")
    state |= {
        "flags": [layer.trainable for layer in layers],
        "variable flags": [v.trainable for v in model.variables],
        "compiled flags": _keras_internals.compiled_trainable_state(model),
        "optimizer": id(optimizer),
        "built": optimizer.built,
        "rate": id(_keras_internals.rate_source(optimizer)),
        "compile config": id(model.get_compile_config() and model._compile_config.config),
        "steps per execution": model.steps_per_execution,
        "train function": id(model.train_function),
        "python random": random.getstate(),
        "numpy random": str(np.random.get_state()),
        "keras random": keras_random and keras_random.state.numpy().tobytes(),
        "tensorflow seed": (context()._seed, context()._rng and context()._rng.getstate()),
        "tensorflow random": tf.random.get_global_generator().state.numpy().tobytes(),
    }
    return state


def without_new_metrics(state, before):
    """Metrics that the model had not made yet are made by the first step of any run."""
    return {k: v for k, v in state.items() if k in before or not k.startswith("metric")}


class Watched(keras.utils.PyDataset):
    """Batches of (X, Y) that note the weights at which they are asked for."""

    def __init__(self, model, fail_at=None, error=None, batch_size=16):
        super().__init__()
        self.model, self.fail_at, self.error = model, fail_at, error
        self.batch_size, self.asked, self.weights = batch_size, 0, []

    def __len__(self):
        return len(X) // self.batch_size

    def __getitem__(self, index):
        if self.asked == self.fail_at:
            raise self.error
        self.asked += 1
        self.weights.append([v.numpy().copy() for v in self.model.trainable_variables])
        chosen = slice(index * self.batch_size, (index + 1) * self.batch_size)
        return X[chosen], Y[chosen]


# --- Everything is as before ------------------------------------------------------------------

MODELS = {
    "stock": make_stock,
    "transfer": make_transfer,
    "schedule": lambda: make_transfer(
        keras.optimizers.Adam(keras.optimizers.schedules.ExponentialDecay(1e-2, 5, 0.5))
    ),
    "averages": lambda: make_transfer(keras.optimizers.AdamW(use_ema=True)),
    "accumulation": lambda: make_stock(keras.optimizers.Adam(gradient_accumulation_steps=2)),
    "loss scaling": lambda: make_transfer(
        keras.optimizers.LossScaleOptimizer(keras.optimizers.Nadam())
    ),
    "several steps at once": lambda: make_transfer(steps_per_execution=4),
    "eager": lambda: make_stock(run_eagerly=True),
    "by hand": lambda: make_stock(discriminative(keras.optimizers.Adam())),
}


SELDOM = pytest.mark.exhaustive


@pytest.mark.usually("stock-None-True", "loss scaling-all-True")
@pytest.mark.parametrize(
    ("name", "stage", "trained"),
    [
        ("stock", None, True),
        ("stock", "all", False),
        pytest.param("transfer", None, True, marks=SELDOM),
        pytest.param("schedule", "top", True, marks=SELDOM),
        ("averages", "all", True),
        pytest.param("accumulation", None, True, marks=SELDOM),
        ("loss scaling", "all", True),
        ("several steps at once", "probe", True),
        pytest.param("eager", None, True, marks=SELDOM),
        ("by hand", None, False),
    ],
)
def test_afterwards_every_byte_is_as_before(name, stage, trained):
    model = MODELS[name]()
    if isinstance(model, ktf.TransferModel):
        model.freeze()
    else:
        model.layers[0].trainable = False
    if trained:
        model.fit(X, Y, verbose=0)
    before = everything(model)
    plan = None if stage is None else PLAN
    curve = find_lr(model, (X, Y), plan, stage, **SHORT)
    assert len(curve.losses) > 5
    assert without_new_metrics(everything(model), before) == before


@pytest.mark.usually("make_transfer-arrays-None")
@pytest.mark.parametrize(
    ("make", "kind", "stage"),
    [
        (make_stock, "shuffled data set", "all"),
        (make_transfer, "arrays", None),
    ],
)
def test_the_next_fit_is_one_without_the_finder(make, kind, stage):
    def train(with_finder):
        keras.utils.set_random_seed(3)
        model = make()
        data = tf.data.Dataset.from_tensor_slices((X, Y)).shuffle(96).batch(16)
        if with_finder:
            plan = None if stage is None else PLAN
            find_lr(model, (X, Y) if kind == "arrays" else data, plan, stage, **SHORT)
        fit = (
            {"x": X, "y": Y, "batch_size": 16}
            if kind == "arrays"
            else {"x": data, "shuffle": False}
        )
        # Twice: shuffles draw a new order for each epoch, and the arrays a new data set.
        history = [model.fit(**fit, epochs=2, verbose=0).history for _ in range(2)]
        return history, [v.numpy() for v in model.weights]

    history, weights = train(with_finder=False)
    history_after, weights_after = train(with_finder=True)
    assert history_after == history
    for value, after in zip(weights, weights_after, strict=True):
        np.testing.assert_array_equal(after, value)


@pytest.mark.usually("interrupt")
@pytest.mark.parametrize(
    ("make", "error"),
    [(make_stock, RuntimeError("no more")), (make_transfer, KeyboardInterrupt())],
    ids=["error", "interrupt"],
)
def test_an_error_or_an_interrupt_leaves_no_trace_either(make, error):
    model = make()
    model.fit(X, Y, verbose=0)
    before = everything(model)
    data = Watched(model, fail_at=7, error=error)
    with pytest.raises(type(error)):
        find_lr(model, data, PLAN, "top", **SHORT)
    assert len(data.weights) == 7
    assert not np.array_equal(data.weights[-1][0], data.weights[2][0])  # it had trained
    assert everything(model) == before


class Noise(keras.layers.Layer):
    """Draws in every way there is."""

    def call(self, x, training=False):
        if not training:
            return x
        return x + 1e-3 * (
            keras.random.uniform(())
            + tf.random.uniform(())
            + tf.random.uniform((), seed=4)
            + tf.random.get_global_generator().uniform(())
            + (np.random.rand() + random.random() if tf.executing_eagerly() else 0)
        )


@pytest.mark.usually("graph")
@pytest.mark.parametrize("eager", [False, True], ids=["graph", "eager"])
def test_draws_afterwards_are_what_they_would_have_been(eager):
    def numbers(with_finder):
        keras.utils.set_random_seed(5)
        tf.random.set_global_generator(tf.random.Generator.from_seed(5))
        model = keras.Sequential([keras.Input((6,)), Noise(), keras.layers.Dense(2, "softmax")])
        model.compile("sgd", "sparse_categorical_crossentropy", run_eagerly=eager)
        model.fit(X, Y, verbose=0)
        if with_finder:
            find_lr(model, (X, Y), **SHORT)
        loss = model.fit(X, Y, verbose=0).history["loss"]
        draws = [
            keras.random.uniform(()),
            tf.random.uniform(()),
            tf.random.uniform((), seed=4),
            tf.random.get_global_generator().uniform(()),
        ]
        return [*loss, *map(float, draws), np.random.rand(), random.random()]

    assert numbers(with_finder=True) == numbers(with_finder=False)


def test_a_data_set_without_a_shuffle_or_with_much_in_it_is_read_as_it_is():
    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(16)
    assert _keras_internals.with_own_shuffles(data) is data
    shuffled = data.shuffle(4)
    assert _keras_internals.with_own_shuffles(shuffled, max_bytes=100) is shuffled
    assert _keras_internals.with_own_shuffles(shuffled) is not shuffled


# --- What it measures -------------------------------------------------------------------------


@pytest.mark.parametrize(("steps_per_execution", "metrics"), [(1, []), (5, ["accuracy"])])
def test_losses_are_those_of_each_batch_before_its_step(steps_per_execution, metrics):
    weights = np.array([[0.3], [-0.2], [0.1], [0.5], [0.0], [-0.4]])
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(1, use_bias=False)])
    model.set_weights([weights])
    model.compile("sgd", "mse", metrics=metrics, steps_per_execution=steps_per_execution)
    targets = X @ np.arange(6, dtype="float32")[:, None]
    data = tf.data.Dataset.from_tensor_slices((X, targets)).batch(16)
    curve = find_lr(model, data, min_lr=1e-3, max_lr=0.2, **SHORT)

    by_hand = []
    for step, rate in enumerate(curve.learning_rates):
        chosen = slice(16 * (step % 6), 16 * (step % 6) + 16)
        error = X[chosen] @ weights - targets[chosen]
        by_hand.append(np.mean(error**2))
        weights = weights - rate * 2 / 16 * X[chosen].T @ error
    np.testing.assert_allclose(curve.losses, by_hand, rtol=1e-4)


def test_rates_grow_by_equal_ratios_from_the_least_to_the_largest(capsys):
    curve = find_lr(make_stock(), (X, Y), min_lr=1e-6, max_lr=1e-4, **SHORT)
    np.testing.assert_allclose(curve.learning_rates, np.geomspace(1e-6, 1e-4, 20))
    assert not curve.diverged
    assert capsys.readouterr().out == ""


@pytest.mark.usually("make_stock-probe", "make_transfer-top")
@pytest.mark.parametrize(
    ("make", "stage"),
    [(make_stock, "probe"), (make_transfer, "top"), (make_stock, "all"), (make_transfer, "all")],
)
def test_the_groups_of_the_stage_move_at_their_ratios_and_no_others(make, stage):
    # Lion moves every weight by just its rate, whatever the gradient.
    model = make(keras.optimizers.Lion(1e-3))
    names = ["stem", "middle", "top"]
    kernels = {v.path.split("/")[-2]: v for v in model.weights if v.name == "kernel"}
    kernels = {"top" if name == "output" else name: v for name, v in kernels.items()}
    seen = []

    class Data(Watched):
        def __getitem__(self, index):
            seen.append({name: kernels[name].numpy().copy() for name in names})
            return super().__getitem__(index)

    groups = None if make is make_transfer else "blocks"
    curve = find_lr(
        model, Data(model), PLAN, stage, min_lr=1e-3, max_lr=1e-2, groups=groups, **SHORT
    )
    assert curve.stage == stage
    ratios = {
        "probe": [0, 0, 1],
        "top": [0, 0.25, 1],
        "all": [0.25, 0.5, 1],
    }[stage]
    # The first two batches are read before the first step, each later one before its own.
    for step in (2, 7):
        for name, ratio in zip(names, ratios, strict=True):
            moved = np.abs(seen[step + 1][name] - seen[step][name]).max()
            assert moved == pytest.approx(curve.learning_rates[step] * ratio, rel=1e-2, abs=0)


def test_the_model_as_it_is_keeps_the_ratios_that_its_optimizer_has():
    model = make_transfer(keras.optimizers.Lion(1e-3))
    find_discriminative(model.optimizer).set_multipliers({"stem": 0.125})
    data = Watched(model)
    curve = find_lr(model, data, min_lr=1e-3, max_lr=1e-2, **SHORT)
    moved = [np.abs(b - a).max() for a, b in zip(data.weights[2], data.weights[3], strict=True)]
    assert moved[0] == pytest.approx(curve.learning_rates[2] / 8, rel=1e-2)
    assert moved[-2] == pytest.approx(curve.learning_rates[2], rel=1e-2)


@pytest.mark.exhaustive
def test_the_optimizer_goes_on_from_its_own_state():
    # With a momentum from training, the first step of the test is no fresh optimizer's.
    def first_step(trained):
        keras.utils.set_random_seed(0)
        model = make_transfer(keras.optimizers.SGD(0.1, momentum=0.9))
        start = [v.numpy() for v in model.weights]
        if trained:
            model.fit(X, Y, verbose=0)
            for variable, value in zip(model.weights, start, strict=True):
                variable.assign(value)
        data = Watched(model)
        find_lr(model, data, min_lr=1e-3, max_lr=1e-2, **SHORT)
        return data.weights[2][0] - data.weights[1][0]

    assert np.abs(first_step(trained=True)).max() > 2 * np.abs(first_step(trained=False)).max()


def test_gradient_descent_diverges_beyond_two_over_the_curvature():
    curvature = 30.0
    random = np.random.default_rng(1)
    features = random.normal(size=(2048, 8)) * np.sqrt(np.geomspace(0.1, 1, 8) * curvature / 2)
    targets = features @ random.normal(size=8) + 0.3 * random.normal(size=2048)
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(1, use_bias=False)])
    model.compile("sgd", "mse")
    curve = find_lr(
        model, (features, targets), batch_size=256, min_lr=1e-5, num_steps=150, verbose=0
    )
    assert curve.diverged
    assert 0.8 < curve.learning_rates[-1] / (2 / curvature) < 4
    assert 0.01 < curve.suggestion / (2 / curvature) < 1


def test_it_stops_at_a_loss_that_is_not_finite():
    inputs = keras.Input((6,))
    model = keras.Model(inputs, keras.layers.Dense(2, "softmax")(inputs))
    model.compile("sgd", "sparse_categorical_crossentropy")
    broken = np.where(np.arange(96)[:, None] >= 48, np.nan, X)
    data = tf.data.Dataset.from_tensor_slices((broken, Y)).batch(16)
    before = everything(model)
    curve = find_lr(model, data, **SHORT)
    assert len(curve.losses) == 4
    assert np.isnan(curve.losses[-1])
    assert curve.diverged
    assert without_new_metrics(everything(model), before) == before


@pytest.mark.exhaustive
def test_mixed_precision_measures_finite_losses():
    keras.config.set_dtype_policy("mixed_float16")
    model = make_stock()
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    before = everything(model)
    curve = find_lr(model, (X, Y), PLAN, "all", max_lr=1e-2, **SHORT)
    assert np.isfinite(curve.losses).all()
    assert 0.2 < curve.losses[0] < 3
    assert without_new_metrics(everything(model), before) == before


def test_accumulated_gradients_take_as_many_batches_for_each_rate():
    model = make_stock(keras.optimizers.SGD(gradient_accumulation_steps=3))
    data = Watched(model)
    curve = find_lr(model, data, max_lr=1e-3, **SHORT)
    assert len(curve.losses) == 20
    assert data.asked == 60


def test_a_train_step_of_the_users_own_is_used():
    class Halved(keras.Model):
        def train_step(self, data):
            x, y = data  # two elements, as `fit` hands them over
            with tf.GradientTape() as tape:
                loss = 0.5 * self.compute_loss(x, y, self(x, training=True))
            weights = self.trainable_weights
            self.optimizer.apply(tape.gradient(loss, weights), weights)
            return {"loss": loss}

    inputs = keras.Input((6,))
    outputs = keras.layers.Dense(2, "softmax")(inputs)
    kwargs = {"max_lr": 1e-6, **SHORT}
    half = Halved(inputs, outputs)
    whole = keras.Model(inputs, outputs)
    for model in (half, whole):
        model.compile("sgd", "sparse_categorical_crossentropy")
    np.testing.assert_allclose(
        np.array(find_lr(half, (X, Y), **kwargs).losses) * 2,
        find_lr(whole, (X, Y), **kwargs).losses,
        rtol=1e-4,
    )


@pytest.mark.usually("weighted")
@pytest.mark.parametrize("kind", ["weighted", "endless"])
def test_every_kind_of_data_that_can_be_read_again_is_taken(kind):
    model = make_stock()
    dataset = tf.data.Dataset.from_tensor_slices((X, Y)).batch(32)
    data = {
        "weighted": (X, Y, np.ones(96)),
        "endless": dataset.repeat(),
    }[kind]
    assert len(find_lr(model, data, max_lr=1e-3, **SHORT).losses) == 20


def test_dictionaries_of_arrays_are_taken():
    inputs = {"a": keras.Input((6,), name="a"), "b": keras.Input((6,), name="b")}
    outputs = keras.layers.Dense(2, "softmax")(keras.layers.Add()(list(inputs.values())))
    model = keras.Model(inputs, outputs)
    model.compile("adam", "sparse_categorical_crossentropy")
    assert len(find_lr(model, ({"a": X, "b": X}, Y), max_lr=1e-3, **SHORT).losses) == 20


def test_a_progress_bar_shows_rate_and_loss(capsys):
    find_lr(make_stock(), (X, Y), num_steps=20)
    shown = capsys.readouterr().out
    assert "learning_rate: " in shown
    assert "loss: " in shown


# --- Replicas ---------------------------------------------------------------------------------


@pytest.mark.distributed
def test_two_replicas_measure_what_one_does_and_leave_no_trace():
    (result,) = run_in_child("tests.replicas.find_lr")
    assert result["replicas"] == 2
    assert len(result["one"]) == 20
    np.testing.assert_allclose(result["two"], result["one"], rtol=1e-4)
    assert result["restored"]
    assert result["trains_afterwards"]
    assert result["replicas_differ"], "control: BatchNorm keeps statistics of each replica's own"
    assert result["each_replica_restored"]
    assert "fewer examples than there are replicas (2). Use larger batches" in result["refused"]


class CountsInRawVariables(keras.layers.Layer):
    """Keeps state where Keras does not look for it."""

    def __init__(self):
        super().__init__()
        self.calls = tf.Variable(0, trainable=False)
        self.nested = {"more": [tf.Variable(0, trainable=False)]}
        self.module = tf.Module()
        self.module.calls = tf.Variable(0, trainable=False)
        self.random = tf.random.Generator.from_seed(1)

    def call(self, x):
        for variable in self.raw():
            variable.assign_add(1)
        return x + 0 * self.random.normal(())

    def raw(self):
        return [self.calls, self.nested["more"][0], self.module.calls]


def test_raw_variables_that_a_layer_holds_are_put_back():
    layer = CountsInRawVariables()
    model = keras.Sequential([keras.Input((6,)), layer, keras.layers.Dense(2, "softmax")])
    model.compile("sgd", "sparse_categorical_crossentropy")
    model.fit(X, Y, verbose=0)
    before = [int(v.numpy()) for v in layer.raw()], layer.random.state.numpy().tolist()
    find_lr(model, (X, Y), **SHORT)
    assert ([int(v.numpy()) for v in layer.raw()], layer.random.state.numpy().tolist()) == before
    model.fit(X, Y, verbose=0)
    assert [int(v.numpy()) for v in layer.raw()] != before[0]


# --- Bad input --------------------------------------------------------------------------------


def one_batch():
    return tf.data.Dataset.from_tensor_slices((X[:16], Y[:16])).batch(16)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((X[:0], Y[:0]), "at least two different batches, but the data has none"),
        ((X[:32], Y[:32]), "only one of 32 examples. Use smaller batches"),
        (one_batch(), "has only one. Use smaller batches"),
        (one_batch().filter(lambda x, y: False), "but the data has none"),
        (one_batch().take(0), "but the data has none"),
        ((X, Y[:90]), "same number of examples. Received: 90, 96"),
        ((X, 3), "Received: a scalar"),
    ],
    ids=range(7),
)
def test_data_of_fewer_than_two_batches_is_refused_before_any_step(data, message):
    model = make_stock()
    before = everything(model)
    with pytest.raises(ValueError, match=message):
        find_lr(model, data, **SHORT)
    assert everything(model) == before


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((batch for batch in [(X, Y)]), "a generator, which would be used up. Wrap it"),
        ([X, Y], r"must be a `tf.data.Dataset`.* Received: data of type list"),
        (None, "Received: data of type NoneType"),
    ],
    ids=["generator", "list", "none"],
)
def test_data_that_cannot_be_read_again_is_refused(data, message):
    with pytest.raises(TypeError, match=message):
        find_lr(make_stock(), data, **SHORT)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"min_lr": 0.0}, ValueError, "`min_lr` must be finite and above 0"),
        ({"min_lr": -1e-3}, ValueError, "`min_lr` must be finite and above 0"),
        ({"max_lr": float("nan")}, ValueError, "`max_lr` must be finite"),
        ({"min_lr": 1.0, "max_lr": 1.0}, ValueError, "`min_lr` must be below `max_lr`"),
        ({"min_lr": 1.0, "max_lr": 0.1}, ValueError, "Received: min_lr=1, max_lr=0.1"),
        ({"num_steps": 5}, ValueError, "`num_steps` must be at least 20"),
        ({"smoothing": 1.0}, ValueError, "`smoothing` must be .*below 1"),
        ({"batch_size": 0}, ValueError, "`batch_size` must be at least 1"),
        ({"stage": "top"}, ValueError, "`stage` needs the `plan`"),
        ({"plan": PLAN, "stage": "tops"}, ValueError, "Did you mean 'top'"),
        ({"plan": "top"}, TypeError, "`plan` must be an `UnfreezingPlan`"),
        (
            {"plan": ktf.UnfreezingPlan([ktf.Stage("deep", depth=9, epochs=1)])},
            ValueError,
            "trains the top 9 layer groups, but the model has",
        ),
    ],
)
def test_bad_arguments_are_refused_before_any_step(arguments, error, message):
    model = make_transfer()
    before = everything(model)
    with pytest.raises(error, match=message):
        find_lr(model, (X, Y), **{**SHORT, **arguments})
    assert everything(model) == before


def test_models_that_cannot_train_are_refused():
    with pytest.raises(TypeError, match="`model` must be a Keras model"):
        find_lr("model", (X, Y))
    with pytest.raises(ValueError, match="is not compiled"):
        find_lr(make_backbone(), (X, Y))
    unbuilt = keras.Sequential([keras.layers.Dense(2)])
    unbuilt.compile("adam", "mse")
    with pytest.raises(ValueError, match="is not built"):
        find_lr(unbuilt, (X, Y))
    frozen = make_stock()
    frozen.trainable = False
    with pytest.raises(ValueError, match=r"Nothing in .* trains"):
        find_lr(frozen, (X, Y))


def test_a_train_step_without_a_loss_is_refused():
    class Silent(keras.Model):
        def train_step(self, data):
            return {"other": tf.constant(0.0)}

    inputs = keras.Input((6,))
    model = Silent(inputs, keras.layers.Dense(2)(inputs))
    model.compile("adam", "mse")
    with pytest.raises(ValueError, match="returns no 'loss'"):
        find_lr(model, (X, Y), **SHORT)


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ((X,), ValueError, r"`data` holds no targets.*\(x, y\)"),
        (X, ValueError, r"`data` holds no targets.*\(x, y\)"),
        (
            tf.data.Dataset.from_tensor_slices((X, Y)),
            ValueError,
            r"not batched.*`data\.batch\(32\)`",
        ),
    ],
    ids=range(3),
)
def test_data_that_cannot_be_trained_on_is_an_error_before_any_work(data, error, message):
    model = make_stock()
    before = everything(model)
    with pytest.raises(error, match=message):
        find_lr(model, data, **SHORT)
    assert everything(model) == before


def test_arrays_side_by_side_are_asked_for_as_a_tuple_and_are_not_printed():
    with pytest.raises(TypeError, match=r"`plan` must be.*Received: a ndarray.*`\(x, y\)`"):
        find_lr(make_stock(), X, Y)


def test_a_multi_optimizer_and_an_unknown_verbose_are_refused():
    several = keras.optimizers.MultiOptimizer(
        keras.optimizers.OptimizerMap(default_optimizer=keras.optimizers.SGD(0.1))
    )
    with pytest.raises(ValueError, match="`MultiOptimizer` has several learning rates"):
        find_lr(make_stock(several), (X, Y), **SHORT)
    with pytest.raises(ValueError, match="`verbose` must be"):
        find_lr(make_stock(), (X, Y), verbose=7)
    with pytest.raises(TypeError, match="`multipliers` must map"):
        discriminative("sgd").set_multipliers(0.5)
