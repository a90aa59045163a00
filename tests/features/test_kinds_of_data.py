"""Every kind of data that `fit` takes: the cached training is the uncached one on arrays."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_transfer as ktf
from tests.features.toys import (
    HEAD_ONLY,
    assert_same,
    dense_backbone,
    dense_model,
    fit,
    inputs,
    same_history,
    train,
)

pytestmark = [
    # What Keras warns of by itself, cached or not.
    pytest.mark.filterwarnings("ignore:.*will be ignored:UserWarning"),
    pytest.mark.filterwarnings("ignore:Your input ran out of data:UserWarning"),
]

# --- Several inputs and outputs ---------------------------------------------------------------

COUNT, SIZE = 22, 8


def arrays(count=COUNT, seed=0):
    """Two inputs and two targets by name."""
    x, y = inputs(count, seed=seed)
    return {"a": x[:, :3], "b": x[:, 3:]}, {"one": y[:, :1], "two": y[:, 1:]}


def two_in_two_out(structure=dict, seed=0, **options):
    a, b = keras.Input((3,), name="a"), keras.Input((3,), name="b")
    dense = dense_backbone(seed=seed)
    x = keras.layers.Concatenate()([a, b])
    given = {"a": a, "b": b} if structure is dict else structure((a, b))
    backbone = keras.Model(given, dense(x), name="body")
    start = keras.Input((8,))
    outputs = {name: keras.layers.Dense(1, name=name)(start) for name in ("one", "two")}
    model = ktf.TransferModel(backbone, keras.Model(start, outputs, name="head"), groups="blocks")
    model.compile("adam", {"one": "mse", "two": "mae"}, **options)
    model.freeze()
    return model


class Batches(keras.utils.PyDataset):
    """Batches of the arrays, in their order."""

    def __init__(self, count=COUNT, seed=0, size=SIZE):
        super().__init__()
        self.data, self.size, self.count = arrays(count, seed), size, count

    def __len__(self):
        return -(-self.count // self.size)

    def __getitem__(self, index):
        part = slice(index * self.size, (index + 1) * self.size)
        return keras.tree.map_structure(lambda a: a[part], self.data)


def dataset(count=COUNT, seed=0):
    return tf.data.Dataset.from_tensor_slices(arrays(count, seed)).batch(SIZE)


def generator(count=COUNT, seed=0):
    batches = Batches(count, seed)
    return (batches[index % len(batches)] for index in itertools.count())


def given(kind):
    """Positional arguments of `fit`, keyword arguments, and the structure of the inputs."""
    x, y = arrays()
    val = arrays(10, seed=3)
    options = {"validation_data": val, "shuffle": False}
    if kind == "dict":
        return (x, y), options, dict
    if kind in ("list", "tuple"):
        structure = {"list": list, "tuple": tuple}[kind]
        flat_val = (structure(val[0].values()), val[1])
        return (structure(x.values()), y), {**options, "validation_data": flat_val}, structure
    if kind == "tensors":
        return keras.tree.map_structure(tf.constant, (x, y)), options, dict
    if kind == "float64":
        return keras.tree.map_structure(lambda a: a.astype("float64"), (x, y)), options, dict
    if kind == "tf.data":
        return (dataset(),), {"validation_data": dataset(10, 3)}, dict
    if kind == "PyDataset":
        return (Batches(),), {"validation_data": Batches(10, 3), "shuffle": False}, dict
    assert kind == "generator"
    steps = {"steps_per_epoch": 3, "validation_steps": 2}
    return (generator(),), {"validation_data": generator(10, 3), **steps}, dict


@pytest.fixture(scope="module")
def reference():
    x, y = arrays()
    options = {"validation_data": arrays(10, seed=3), "shuffle": False}
    run = train(two_in_two_out, False, x, y, epochs=2, **options)
    other = train(lambda: two_in_two_out(seed=1), False, x, y, epochs=2, **options)
    assert not same_history(run.history, other.history), "control: features do matter"
    return run


@pytest.mark.usually("tf.data", "generator")
@pytest.mark.parametrize(
    "kind", ["dict", "list", "tuple", "tensors", "float64", "tf.data", "PyDataset", "generator"]
)
def test_cached_training_is_the_same_on_every_kind_of_data(kind, reference):
    data, options, structure = given(kind)
    cached = train(lambda: two_in_two_out(structure), True, *data, epochs=2, **options)
    assert cached.decision.startswith("Feature cache on for training")
    assert cached.passes == ["training", "validation"]
    assert_same(cached, reference)


@pytest.mark.exhaustive
def test_sample_weights_in_a_data_set_are_kept():
    x, y = arrays()
    weights = {"one": np.linspace(0, 2, COUNT), "two": np.linspace(3, 1, COUNT)}
    data = tf.data.Dataset.from_tensor_slices((x, y, weights)).batch(SIZE)
    cached = train(two_in_two_out, True, data, epochs=2)
    assert_same(cached, train(two_in_two_out, False, data, epochs=2))
    assert_same(
        cached, train(two_in_two_out, True, x, y, sample_weight=weights, shuffle=False, epochs=2)
    )


def test_a_data_set_may_leave_sample_weights_out():
    data = tf.data.Dataset.from_tensor_slices(inputs()).batch(SIZE)
    cached = train(dense_model, "auto", data.map(lambda x, y: (x, y, None)), plan=HEAD_ONLY)
    assert cached.passes == ["training"]
    assert_same(cached, train(dense_model, False, data, plan=HEAD_ONLY))


class Distance(keras.layers.Layer):
    """A head that makes its own loss."""

    def __init__(self):
        super().__init__(name="head")
        self.dense = keras.layers.Dense(2)

    def build(self, shape):
        self.dense.build(shape)

    def call(self, x):
        self.add_loss(keras.ops.mean(keras.ops.square(self.dense(x))))
        return x


@pytest.mark.usually("tf.data")
@pytest.mark.parametrize("kind", ["arrays", "tf.data"])
def test_data_may_have_no_targets(kind):
    x, _ = inputs()
    data = x if kind == "arrays" else tf.data.Dataset.from_tensor_slices(x).batch(SIZE)

    def build():
        return dense_model(head=Distance(), loss=None)

    cached = train(build, "auto", data, plan=HEAD_ONLY)
    assert cached.passes == ["training"]
    assert np.ptp(cached.history["loss"]) > 0
    assert_same(cached, train(build, False, data, plan=HEAD_ONLY))


# --- Batches ----------------------------------------------------------------------------------


def sliced(*sizes):
    """A data set of batches of these sizes."""
    x, y = inputs(sum(sizes))
    parts = np.split(np.arange(len(x)), np.cumsum(sizes)[:-1])
    data = [tf.data.Dataset.from_tensors((x[part], y[part])) for part in parts]
    whole = data[0]
    for part in data[1:]:
        whole = whole.concatenate(part)
    return whole


def odd_in_the_middle():
    return tf.data.Dataset.from_tensor_slices(inputs(10)).batch(4).repeat(2)


def larger_than_said():
    """A map that makes batches of eight of batches of four."""
    data = tf.data.Dataset.from_tensor_slices(inputs(16)).batch(4)
    return data.map(lambda x, y: (tf.concat([x, x + 1.0], 0), tf.concat([y, y], 0)))


@pytest.mark.usually("irregular")
@pytest.mark.parametrize(
    "make",
    [lambda: sliced(4, 7, 1, 9), lambda: sliced(3, 3, 5), odd_in_the_middle, larger_than_said],
    ids=["irregular", "larger last", "odd in the middle", "larger than said"],
)
def test_batches_of_any_size_are_kept_as_they_are(make):
    cached = train(dense_model, "auto", make(), plan=HEAD_ONLY)
    assert cached.passes  # two where it turns out on the way that batches have to stay whole
    assert_same(cached, train(dense_model, False, make(), plan=HEAD_ONLY))


@pytest.mark.exhaustive
def test_sequences_padded_to_the_longest_of_their_batch():
    words = tf.data.Dataset.from_tensor_slices(np.arange(1, 8)).map(tf.range)
    sentences = words.map(lambda ids: (ids, tf.cast(tf.size(ids), tf.float32)))
    data = sentences.padded_batch(2)

    def build():
        layers = [
            keras.Input((None,), dtype="int32"),
            keras.layers.Embedding(10, 4, mask_zero=True),
            keras.layers.LSTM(4, return_sequences=True, name="low"),
            keras.layers.LSTM(4, return_sequences=True, name="high"),
        ]
        return dense_model(keras.Sequential(layers), ktf.layers.RegressionHead(1, name="head"))

    plan = ktf.UnfreezingPlan([ktf.Stage("high", depth=2, epochs=2)])
    cached = train(build, "auto", data, plan=plan)
    assert cached.passes == ["training"]
    assert_same(cached, train(build, False, data, plan=plan))


def test_targets_of_another_shape_in_each_batch():
    x, _ = inputs(8)
    lengths = tf.data.Dataset.from_tensor_slices((x, [1, 2, 3, 1, 1, 4, 2, 1]))
    data = lengths.map(lambda x, n: (x, tf.ones((n, 1)))).padded_batch(2, ([6], [None, 1]))

    def loss(y, predicted):
        return keras.ops.mean(keras.ops.square(keras.ops.sum(y, axis=1) - predicted))

    cached = train(lambda: dense_model(loss=loss), "auto", data, plan=HEAD_ONLY)
    assert cached.passes
    assert_same(cached, train(lambda: dense_model(loss=loss), False, data, plan=HEAD_ONLY))


class Unfold(keras.layers.Layer):
    """Loses the length of its output, which TensorFlow then knows only at run time."""

    def call(self, x):
        return tf.reshape(x, [tf.shape(x)[0], -1, 4])

    def compute_output_shape(self, shape):
        return (shape[0], None, 4)


def test_arrays_whose_features_have_a_length_that_is_not_known_before():
    def build():
        start = keras.Input((6,))
        x = Unfold()(keras.layers.Dense(8, name="stem")(start))
        backbone = keras.Model(start, keras.layers.Dense(4, name="top")(x))
        return dense_model(backbone, ktf.layers.RegressionHead(2, name="head"))

    plan = ktf.UnfreezingPlan([ktf.Stage("top", depth=2, epochs=2)])
    cached = train(build, "auto", *inputs(), plan=plan)
    assert cached.passes == ["training"]
    np.testing.assert_allclose(
        cached.history["loss"], train(build, False, *inputs(), plan=plan).history["loss"], 1e-5
    )


class Unique(keras.layers.Layer):
    """Returns as many steps as there are different numbers in the batch."""

    def call(self, x):
        found = tf.shape(tf.unique(tf.reshape(tf.round(10.0 * x), [-1]))[0])[0]
        return x[:, None, :] * tf.ones((1, found, 1))

    def compute_output_shape(self, shape):
        return (shape[0], None, shape[1])


def test_arrays_whose_features_have_another_length_in_each_batch_are_not_cached():
    def build():
        start = keras.Input((6,))
        x = Unique()(keras.layers.Dense(8, name="stem")(start))
        backbone = keras.Model(start, keras.layers.Dense(4, name="top")(x))
        return dense_model(backbone, ktf.layers.RegressionHead(2, name="head"))

    plan = ktf.UnfreezingPlan([ktf.Stage("top", depth=2, epochs=2)])
    with pytest.raises(ValueError, match="the features have another shape in each batch"):
        train(build, True, *inputs(), plan=plan)
    run = train(build, "auto", *inputs(), plan=plan)
    assert "Feature cache off: the features have another shape in each batch.\n" in run.printed
    assert_same(run, train(build, False, *inputs(), plan=plan))


# --- Order ------------------------------------------------------------------------------------


class Means(keras.callbacks.Callback):
    """Takes apart the running mean that `fit` reports, for models that predict zero.

    The loss of a batch is then the mean of its targets: which examples it holds.
    """

    def on_train_begin(self, logs=None):
        self.epochs = []

    def on_epoch_begin(self, epoch, logs=None):
        self.sums = [0.0]
        self.epochs.append([])

    def on_train_batch_end(self, batch, logs=None):
        self.sums.append(logs["loss"] * (batch + 1))
        self.epochs[-1].append(round(self.sums[-1] - self.sums[-2], 2))


def orders(data, cache_features="auto", epochs=3, **options):
    head = keras.layers.Dense(1, kernel_initializer="zeros", name="head")
    model = dense_model(head=head, optimizer=keras.optimizers.SGD(0.0), loss="mae")
    model.freeze()
    means = Means()
    data = data if isinstance(data, tuple) else (data,)
    keras.utils.set_random_seed(2)
    run = fit(
        model, *data, cache_features=cache_features, epochs=epochs, callbacks=[means], **options
    )
    assert (run.passes == []) == (cache_features is False)
    return means.epochs


def numbered(count=8):
    return inputs(count)[0], np.arange(count, dtype="float32")[:, None]


def slices():
    return tf.data.Dataset.from_tensor_slices(numbered())


def test_what_is_not_shuffled_keeps_its_order():
    in_order = [list(range(8))] * 3
    assert orders(slices().batch(1)) == in_order
    assert orders(numbered(), batch_size=1, shuffle=False) == in_order
    once = slices().shuffle(8, seed=1, reshuffle_each_iteration=False).batch(1)
    assert orders(once) == orders(once, False) != in_order


def test_arrays_are_permuted_anew_each_epoch_the_same_cached_and_uncached():
    found = orders(numbered(), shuffle=True, batch_size=1)
    assert found == orders(numbered(), False, batch_size=1, shuffle=True)
    assert len({tuple(order) for order in found}) == 3
    assert all(sorted(order) == list(range(8)) for order in found)
    assert orders(numbered(), shuffle=True, batch_size=1, initial_epoch=1) == found[1:]


def test_a_shuffled_data_set_is_permuted_anew_each_epoch():
    found = orders(slices().shuffle(3).batch(1))
    assert len({tuple(order) for order in found}) == 3
    assert all(sorted(order) == list(range(8)) for order in found)


def test_shuffled_batches_stay_whole():
    found = orders(slices().batch(2).shuffle(4))
    assert len({tuple(order) for order in found}) > 1
    assert all(sorted(order) == [0.5, 2.5, 4.5, 6.5] for order in found)


def test_shuffled_batches_of_different_sizes_come_once_each():
    head = keras.layers.Dense(1, kernel_initializer="zeros", name="head")
    model = dense_model(head=head, optimizer=keras.optimizers.SGD(0.0), loss="mae")
    model.freeze()
    data = slices().batch(3).repeat(2).shuffle(6)
    run = fit(model, data, epochs=3, cache_features=True)
    assert run.passes == ["training"]
    np.testing.assert_allclose(run.history["loss"], [3.5] * 3)


# --- What cannot be cached --------------------------------------------------------------------


class Endless(Batches):
    @property
    def num_batches(self):
        return None


def unknown():
    return dataset().filter(lambda x, y: True)


def ragged():
    rows = tf.RaggedTensor.from_row_lengths(tf.ones(COUNT), tf.ones(COUNT, tf.int64))
    return tf.data.Dataset.zip(dataset(), tf.data.Dataset.from_tensor_slices(rows).batch(SIZE))


STREAMS = {
    "data set without end": (
        lambda: ((dataset().repeat(),), {"steps_per_epoch": 3}),
        "the data set has no end",
    ),
    "unknown length": (
        lambda: ((unknown(),), {}),
        "a tf.data.Dataset of unknown length cannot be kept",
    ),
    "fewer steps than batches": (
        lambda: ((dataset().repeat(2),), {"steps_per_epoch": 3}),
        "with steps_per_epoch an epoch is not the whole data set",
    ),
    "PyDataset without end": (
        lambda: ((Endless(),), {"steps_per_epoch": 3}),
        "the PyDataset has no end",
    ),
    "fewer steps than a PyDataset has": (
        lambda: ((Batches(),), {"steps_per_epoch": 2}),
        "with steps_per_epoch an epoch is not the whole PyDataset",
    ),
    "arrays with steps": (
        lambda: (arrays(), {"steps_per_epoch": 2}),
        "arrays with steps_per_epoch have another order than the cache's",
    ),
    "arrays shuffled in Keras's batches": (
        lambda: (arrays(), {"shuffle": "batch"}),
        "arrays with shuffle='batch' have another order than the cache's",
    ),
    "ragged": (
        lambda: ((ragged(),), {}),
        "its batches hold something else than dense tensors",
    ),
    "strings as targets": (
        lambda: ((dataset().map(lambda x, y: (x, {"one": y["one"], "two": "?"})),), {}),
        "its targets hold strings",
    ),
    "lists of numbers": (
        lambda: (({"a": [[1.0] * 3] * 8, "b": [[1.0] * 3] * 8},), {}),
        "data of type dict is neither plain arrays nor a data set",
    ),
}


@pytest.mark.usually(
    "data set without end",
    "unknown length",
    "arrays shuffled in Keras's batches",
    "ragged",
    "strings as targets",
    "lists of numbers",
)
@pytest.mark.parametrize("stream", STREAMS)
def test_what_cannot_be_read_twice_is_trained_uncached_and_says_so(stream):
    make, reason = STREAMS[stream]
    data, options = make()
    with pytest.raises(ValueError, match=f"Features cannot be cached: {reason}. Pass cache_fe"):
        fit(two_in_two_out(), *data, cache_features=True, epochs=2, **options)
    if stream in ("lists of numbers", "strings as targets", "ragged"):
        return  # Keras, or this model, cannot train on them either
    data, options = make()
    run = train(lambda: two_in_two_out(run_eagerly=True), "auto", *data, epochs=2, **options)
    assert run.decision == f"Feature cache off: {reason}."
    assert run.passes == []
    assert len(run.history["loss"]) == 2


def test_a_generator_without_a_length_is_not_cached():
    batches = [Batches()[0]] * 3
    with pytest.raises(ValueError, match="cannot be cached: a generator has no known length"):
        fit(two_in_two_out(), (b for b in batches), cache_features=True, epochs=2)
    run = fit(two_in_two_out(), (b for b in batches), epochs=2)
    assert run.decision == "Feature cache off: a generator has no known length."


@pytest.mark.usually("PyDataset-a PyDataset")
@pytest.mark.parametrize(
    ("kind", "name"), [("PyDataset", "a PyDataset"), ("generator", "a generator")]
)
def test_what_runs_python_code_is_cached_only_on_demand(kind, name):
    data, options, _ = given(kind)
    run = fit(two_in_two_out(run_eagerly=True), *data, epochs=2, **options)
    assert run.decision == f"Feature cache off: {name} may yield other values each time."
    assert run.passes == []


@pytest.mark.exhaustive
def test_validation_data_alone_may_be_uncached():
    run = train(two_in_two_out, "auto", dataset(), validation_data=Batches(10, 3), epochs=2)
    assert run.decision.endswith(
        "Validation data is not cached: a PyDataset may yield other values each time."
    )
    assert run.passes == ["training"]
    uncached = train(two_in_two_out, False, dataset(), validation_data=Batches(10, 3), epochs=2)
    assert_same(run, uncached)


# --- What callbacks are told of the data ------------------------------------------------------


class Steps(keras.callbacks.Callback):
    def on_train_begin(self, logs=None):
        self.steps = self.params["steps"]


@pytest.mark.usually("split", "unknown")
@pytest.mark.parametrize(
    ("make", "options", "steps"),
    [
        (lambda: arrays(), {"validation_split": 0.5}, 2),
        (lambda: arrays(), {"shuffle": "batch"}, 3),
        (lambda: (generator(),), {"steps_per_epoch": 5}, 5),
        (lambda: (unknown(),), {}, None),
    ],
    ids=["split", "batch", "generator", "unknown"],
)
def test_callbacks_are_told_how_many_steps_an_epoch_has(make, options, steps):
    told = Steps()
    fit(two_in_two_out(run_eagerly=True), *make(), callbacks=[told], **options)
    assert told.steps == steps
