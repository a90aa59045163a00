"""Which data sets are known to yield the same examples each time.

Each verdict is compared with what the data set does: one that is called the same is read several
times, and one that is called different is seen to be.
"""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_transfer import data
from keras_transfer.features._pipeline import batch_size_of, examine
from tests.data import builders

COUNT = 10


@pytest.fixture(autouse=True)
def unseeded():
    """With a seed, TensorFlow draws the same numbers each time that a data set is read."""
    tf.random.set_seed(None)


Data = tf.data.Dataset
AUTOTUNE = tf.data.AUTOTUNE


def numbers():
    return Data.range(COUNT).map(lambda n: (tf.cast(n, tf.float32), n))


def examples(dataset):
    """All examples of one reading, in an order of their own."""
    found = []
    for element in dataset:
        leaves = [np.asarray(leaf) for leaf in tf.nest.flatten(element)]
        is_batch = len({leaf.shape[:1] for leaf in leaves}) == 1 and leaves[0].ndim > 0
        rows = zip(*leaves, strict=True) if is_batch else [leaves]
        found += [repr([np.asarray(part).tolist() for part in row]) for row in rows]
    return sorted(found)


def readings(dataset, times=2):
    return {tuple(examples(dataset)) for _ in range(times)}


# --- The same each time, in the same order ----------------------------------------------------


def of_records(folder):
    path = str(folder / "numbers.tfrecord")
    with tf.io.TFRecordWriter(path) as writer:
        for n in range(COUNT):
            writer.write(tf.io.serialize_tensor(tf.constant(float(n))).numpy())
    return path


def of_lines(folder):
    path = folder / "numbers.txt"
    path.write_text("\n".join(map(str, range(COUNT))))
    return str(path)


def look_up():
    table = tf.lookup.StaticHashTable(
        tf.lookup.KeyValueTensorInitializer(tf.range(10), tf.range(10, 20)), -1
    )
    return lambda x, n: (x, table.lookup(tf.cast(n, tf.int32)))


@tf.function
def halved(x):
    return x / 2


SAME = {
    "range": lambda folder: numbers(),
    "tensors": lambda folder: Data.from_tensors((np.ones((4, 2)), np.ones(4))),
    "slices": lambda folder: Data.from_tensor_slices(np.arange(10)),
    "records": lambda folder: Data.list_files(of_records(folder), shuffle=False).interleave(
        tf.data.TFRecordDataset
    ),
    "parsed records": lambda folder: tf.data.TFRecordDataset(of_records(folder)).map(
        lambda record: tf.io.parse_tensor(record, tf.float32)
    ),
    "lines": lambda folder: tf.data.TextLineDataset(of_lines(folder)).map(tf.strings.length),
    "files": lambda folder: Data.from_tensors(of_lines(folder)).map(tf.io.read_file),
    "batch": lambda folder: numbers().batch(3),
    "batch in parallel": lambda folder: numbers().batch(3, num_parallel_calls=2),
    "drop_remainder": lambda folder: numbers().batch(3, drop_remainder=True),
    "map": lambda folder: numbers().map(lambda x, n: (x * 2, n)),
    "map in parallel": lambda folder: numbers().map(lambda x, n: (x, n), AUTOTUNE),
    "function in map": lambda folder: numbers().map(lambda x, n: (halved(x), n)),
    "condition in map": lambda folder: numbers().map(
        lambda x, n: (tf.cond(x > 3, lambda: x, lambda: -x), n)
    ),
    "loop in map": lambda folder: numbers().map(
        lambda x, n: (tf.while_loop(lambda v: v < 9, lambda v: [v + 2], [x])[0], n)
    ),
    "image in map": lambda folder: numbers().map(
        lambda x, n: (tf.image.resize(tf.fill((4, 4, 3), x), (2, 2), antialias=True), n)
    ),
    "jpeg in map": lambda folder: numbers().map(
        lambda x, n: tf.io.decode_image(
            tf.io.encode_jpeg(tf.fill((4, 4, 3), tf.cast(n, tf.uint8))), expand_animations=False
        )
    ),
    "map of batches": lambda folder: (
        numbers().batch(3).map(lambda x, n: (x - tf.reduce_mean(x), n))
    ),
    "scaling layer in map": lambda folder: numbers().map(
        lambda x, n: (keras.layers.Rescaling(1 / 255)(x), n)
    ),
    "prefetch": lambda folder: numbers().prefetch(2),
    "repeat": lambda folder: numbers().repeat(2),
    "options": lambda folder: numbers().with_options(tf.data.Options()),
    "take": lambda folder: numbers().take(4),
    "skip": lambda folder: numbers().skip(4),
    "shard": lambda folder: numbers().shard(2, 1),
    "filter": lambda folder: numbers().filter(lambda x, n: x > 3),
    "take_while": lambda folder: numbers().take_while(lambda x, n: x < 3),
    "zip": lambda folder: Data.zip(numbers(), numbers()),
    "concatenate": lambda folder: numbers().concatenate(numbers()),
    "padded_batch": lambda folder: Data.range(1, 6).map(tf.range).padded_batch(2),
    "bucketing": lambda folder: (
        Data.range(1, 6).map(tf.range).bucket_by_sequence_length(tf.size, [3], [2, 2])
    ),
    "unbatch": lambda folder: numbers().batch(4).unbatch(),
    "flat_map": lambda folder: Data.range(3).flat_map(lambda n: Data.range(n)),
    "interleave": lambda folder: Data.range(3).interleave(lambda n: Data.range(n)),
    "interleave in parallel": lambda folder: Data.range(3).interleave(
        lambda n: Data.range(5), cycle_length=2, num_parallel_calls=2
    ),
    "window": lambda folder: Data.range(6).window(2).flat_map(lambda w: w.batch(2)),
    "ignore_errors": lambda folder: numbers().ignore_errors(),
    "asserted length": lambda folder: numbers().apply(
        tf.data.experimental.assert_cardinality(COUNT)
    ),
    "cached": lambda folder: numbers().cache(),
    "cached to a file": lambda folder: numbers().cache(str(folder / "kept")),
    "random, then cached": lambda folder: (
        numbers().map(lambda x, n: (x + tf.random.uniform(()), n)).cache()
    ),
    "shuffled, then cached": lambda folder: numbers().shuffle(10).cache().skip(4),
    "shuffled once": lambda folder: numbers().shuffle(10, reshuffle_each_iteration=False).take(4),
    "shuffled once, seeded": lambda folder: (
        numbers().shuffle(10, seed=1, reshuffle_each_iteration=False).take(4)
    ),
}


@pytest.mark.usually(
    "range",
    "parsed records",
    "files",
    "batch in parallel",
    "map in parallel",
    "condition in map",
    "jpeg in map",
    "scaling layer in map",
    "repeat",
    "options",
    "shard",
    "filter",
    "zip",
    "padded_batch",
    "interleave in parallel",
    "cached",
    "random, then cached",
    "shuffled once, seeded",
)
@pytest.mark.parametrize("name", SAME)
def test_the_same_each_time(name, tmp_path):
    dataset = SAME[name](tmp_path)
    verdict = examine(dataset)
    assert (verdict.reason, verdict.is_shuffled) == ("", False)
    assert len(readings(dataset)) == 1
    orders = [[repr(np.asarray(tf.nest.flatten(e)[0]).tolist()) for e in dataset] for _ in range(2)]
    assert orders[0] == orders[1]


# --- The same examples in another order -------------------------------------------------------

SHUFFLED = {
    "shuffle": lambda d: d.shuffle(10).batch(3),
    "seeded": lambda d: d.shuffle(10, seed=1).batch(3).prefetch(1),
    "map before batch": lambda d: d.shuffle(10).map(lambda x, n: (x - tf.sqrt(x), n)).batch(3),
    "elementwise map of batches": lambda d: (
        d.shuffle(10).batch(3).map(lambda x, n: (tf.cast(x, tf.float32) / 255.0, tf.one_hot(n, 10)))
    ),
    "batch in parallel": lambda d: d.shuffle(10).batch(3, num_parallel_calls=2),
    "drop_remainder of none": lambda d: d.shuffle(10).batch(5, drop_remainder=True),
    "repeat before": lambda d: d.repeat(2).shuffle(20).batch(3),
    "repeat behind": lambda d: d.shuffle(10).repeat(2).batch(3),
    "take before": lambda d: d.take(6).shuffle(10).batch(3),
    "filter before": lambda d: d.filter(lambda x, n: x > 3).shuffle(10).batch(3),
    "batch and unbatch": lambda d: d.shuffle(10).batch(3).unbatch().batch(2),
    "twice": lambda d: d.shuffle(10).shuffle(10).batch(3),
    "cached before": lambda d: (
        d.map(lambda x, n: (x + tf.random.uniform(()), n)).cache().shuffle(10).batch(3)
    ),
    "shuffled files": lambda d: (
        Data.range(4).shuffle(4).interleave(lambda n: Data.range(n)).batch(3)
    ),
}


@pytest.mark.usually(
    "shuffle",
    "seeded",
    "map before batch",
    "elementwise map of batches",
    "repeat before",
    "take before",
    "batch and unbatch",
    "twice",
    "cached before",
    "shuffled files",
)
@pytest.mark.parametrize("name", SHUFFLED)
def test_the_same_examples_in_another_order(name):
    dataset = SHUFFLED[name](numbers())
    verdict = examine(dataset)
    assert (verdict.reason, verdict.is_shuffled, verdict.shuffles_batches) == ("", True, False)
    assert len(readings(dataset)) == 1
    orders = {tuple(np.concatenate([tf.nest.flatten(e)[0] for e in dataset])) for _ in range(5)}
    assert len(orders) > 1


@pytest.mark.parametrize(
    "make",
    [
        lambda: numbers().batch(3).shuffle(4),
        lambda: numbers().batch(3).map(lambda x, n: (x * 2, n)).shuffle(4).prefetch(1),
        lambda: Data.range(1, 6).map(tf.range).padded_batch(2).shuffle(3),
        lambda: numbers().shuffle(10, reshuffle_each_iteration=False).batch(3).shuffle(4),
    ],
)
def test_whole_batches_in_another_order(make):
    verdict = examine(make())
    assert (verdict.reason, verdict.is_shuffled, verdict.shuffles_batches) == ("", True, True)


# --- Other examples each time -----------------------------------------------------------------


def noise(x, n):
    return x + tf.random.uniform(()), n


def augmented(layer):
    layers = keras.Sequential([layer])
    return numbers().map(
        lambda x, n: (layers(tf.reshape(x * tf.range(16.0), (4, 4, 1)), training=True), n)
    )


def another_set(what):
    return f"{what} after shuffle yields another set of examples each time"


RANDOM = r"its pipeline draws random numbers \(.*Random.*\)"
DIFFERENT = {
    "random map": (lambda: numbers().map(noise), RANDOM),
    "random map in parallel": (lambda: numbers().map(noise, AUTOTUNE).batch(3), RANDOM),
    "random map before shuffle": (lambda: numbers().map(noise).shuffle(10).batch(3), RANDOM),
    "random map behind shuffle": (lambda: numbers().shuffle(10).map(noise).batch(3), RANDOM),
    "random map of batches": (lambda: numbers().batch(3).map(noise).prefetch(1), RANDOM),
    "random function": (lambda: numbers().map(lambda x, n: tf.function(noise)(x, n)), RANDOM),
    "random condition": (
        lambda: numbers().map(lambda x, n: tf.cond(x > 3, lambda: noise(x, n), lambda: (x, n))),
        RANDOM,
    ),
    "random filter": (
        lambda: numbers().filter(lambda x, n: tf.random.uniform(()) > 0.5),
        RANDOM,
    ),
    "random flat_map": (
        lambda: Data.range(5).flat_map(lambda n: Data.range(10 * n).shuffle(9).take(2)),
        r"its pipeline draws random numbers \(ShuffleDataset.*\)",
    ),
    "image with random brightness": (
        lambda: numbers().map(
            lambda x, n: (tf.image.random_brightness(tf.fill((2, 2), x), 1.0), n)
        ),
        RANDOM,
    ),
    "random flip layer": (lambda: augmented(keras.layers.RandomFlip()), RANDOM),
    "random zoom layer": (lambda: augmented(keras.layers.RandomZoom(0.5)), RANDOM),
    "dropout layer": (lambda: augmented(keras.layers.Dropout(0.5)), RANDOM),
    "shuffle, take": (lambda: numbers().shuffle(10).take(4), another_set("take")),
    "shuffle, skip": (lambda: numbers().shuffle(10).skip(4), another_set("skip")),
    "shuffle, shard": (lambda: numbers().shuffle(10).shard(2, 0), another_set("shard")),
    "shuffle, take_while": (
        lambda: numbers().shuffle(10).take_while(lambda x, n: x < 6),
        another_set("take_while"),
    ),
    "shuffle, zip": (
        lambda: Data.zip(numbers().shuffle(10), numbers()),
        another_set("zip"),
    ),
    "shuffle, cache, take": (lambda: numbers().shuffle(10).cache().take(4), another_set("take")),
    "random map, cache, take": (lambda: numbers().map(noise).cache().take(4), RANDOM),
    "shuffle, window": (
        lambda: (
            Data.range(9).shuffle(9).window(2).flat_map(lambda w: w.batch(2)).map(tf.reduce_sum)
        ),
        another_set("window"),
    ),
    "shuffle, padded_batch": (
        lambda: Data.range(1, 9).map(tf.range).shuffle(9).padded_batch(2).map(tf.size),
        another_set("padded_batch"),
    ),
    "shuffle, bucketing": (
        lambda: (
            Data.range(1, 33)
            .map(tf.range)
            .shuffle(33)
            .bucket_by_sequence_length(tf.size, [17], [2, 2])
            .map(tf.size)
        ),
        another_set("group_by_window or bucket_by_sequence_length"),
    ),
    "shuffle, batch, take": (lambda: numbers().shuffle(10).batch(3).take(2), another_set("take")),
    "shuffle, drop_remainder": (
        lambda: numbers().shuffle(10).batch(3, drop_remainder=True),
        r"batch\(drop_remainder=True\) after shuffle drops other examples each time",
    ),
    "take between two shuffles": (
        lambda: numbers().shuffle(10).take(4).shuffle(4),
        another_set("take"),
    ),
}


@pytest.mark.usually(
    "random map in parallel",
    "random map behind shuffle",
    "random function",
    "random filter",
    "random flip layer",
    "dropout layer",
    "shuffle, take",
    "shuffle, shard",
    "shuffle, cache, take",
    "random map, cache, take",
    "shuffle, bucketing",
    "shuffle, batch, take",
    "take between two shuffles",
)
@pytest.mark.parametrize("name", DIFFERENT)
def test_other_examples_each_time(name):
    make, reason = DIFFERENT[name]
    verdict = examine(make())
    assert verdict.differs
    assert re.fullmatch(reason, verdict.reason), verdict.reason
    assert len(readings(make(), times=5)) > 1


def slowly(x, n):
    """Takes the longer, the smaller the number."""
    (steps,) = tf.while_loop(lambda v: v < 20000, lambda v: [v + n + 1], [n])
    return x + 0 * tf.cast(steps, tf.float32), n


def without_order(dataset):
    options = tf.data.Options()
    options.deterministic = False
    return dataset.with_options(options)


def counted():
    counter = iter(range(1000))
    return lambda x: np.float32(next(counter))


class Counter(keras.layers.Layer):
    """Gives another number each time, without a random one."""

    def __init__(self):
        super().__init__()
        self.count = self.add_weight(shape=(), initializer="zeros", trainable=False)

    def call(self, x):
        self.count.assign_add(1.0)
        return x + self.count


def with_variable():
    variable = tf.Variable(0.0)
    return numbers().map(lambda x, n: (x + variable.assign_add(1.0), n))


def with_layer():
    counter = Counter()
    return numbers().map(lambda x, n: (counter(x), n))


MAYBE = r"its pipeline runs Python code, which may yield other values each time"
INSIDE = "it reads data sets from inside others, which may yield others each time"


def noisy_halves():
    noisy = numbers().map(noise)
    return Data.from_tensor_slices([noisy.take(5), noisy.skip(5)]).interleave(lambda d: d)


def captured_shuffle():
    shuffled = numbers().shuffle(10)
    return Data.range(2).flat_map(lambda _: shuffled.take(3))


UNKNOWN = {
    "table in map": (lambda: numbers().map(look_up()), "its pipeline runs LookupTableFindV2, .*"),
    "data sets as elements": (noisy_halves, INSIDE),
    "captured data set": (captured_shuffle, INSIDE),
    "mixing map behind two shuffles": (
        lambda: (
            numbers()
            .shuffle(10)
            .batch(5)
            .shuffle(2)
            .map(lambda x, n: ((x + tf.reverse(x, [0])) / 2, n))
        ),
        r"a map over shuffled batches may mix their examples \(map before batch\)",
    ),
    "py_function": (
        lambda: numbers().map(lambda x, n: (tf.py_function(counted(), [x], tf.float32), n)),
        MAYBE,
    ),
    "numpy_function": (
        lambda: numbers().map(lambda x, n: (tf.numpy_function(counted(), [x], tf.float32), n)),
        MAYBE,
    ),
    "from_generator": (
        lambda: Data.from_generator(
            lambda: iter(np.random.default_rng().normal(size=3)),
            output_signature=tf.TensorSpec((), tf.float64),
        ),
        MAYBE,
    ),
    "variable": (
        with_variable,
        r"its pipeline runs AssignAddVariableOp, which may yield other values each time",
    ),
    "layer with state": (
        with_layer,
        r"its pipeline runs ReadVariableOp, which may yield other values each time",
    ),
    "enumerate": (
        lambda: numbers().shuffle(10).enumerate(),
        "it is not known whether VariantDataset yields the same each time",
    ),
    "take of a parallel map without order": (
        lambda: numbers().map(slowly, 4, deterministic=False).take(3),
        "take after a parallel transformation with deterministic=False may yield another set .*",
    ),
    "take where options let go of the order": (
        lambda: without_order(numbers().map(slowly, 4).take(3)),
        "take after a parallel transformation with deterministic=False may yield another set .*",
    ),
    "random data set": (
        lambda: Data.random(rerandomize_each_iteration=True).take(3),
        "it is not known whether RandomDataset yields the same each time",
    ),
    "sample_from_datasets": (
        lambda: Data.sample_from_datasets([numbers(), numbers().map(lambda x, n: (-x, n))]).take(5),
        "it is not known whether .* yields the same each time|another set",
    ),
    "rejection_resample": (
        lambda: (
            Data.range(20)
            .rejection_resample(lambda n: tf.cast(n % 2, tf.int32), [0.9, 0.1])
            .map(lambda c, n: n)
        ),
        "it is not known whether .* yields the same each time|its pipeline draws.*",
    ),
    "scan": (
        lambda: numbers().scan(0.0, lambda total, e: (total + e[0], total)),
        "it is not known whether ScanDataset yields the same each time",
    ),
    "map of shuffled batches": (
        lambda: numbers().shuffle(10).batch(4).map(lambda x, n: (x - tf.reduce_mean(x), n)),
        r"a map over shuffled batches may mix their examples \(map before batch\)",
    ),
    "broadcasting map of shuffled batches": (
        lambda: (
            Data.range(8)
            .shuffle(8)
            .batch(4)
            .map(lambda n: tf.cast(n, tf.float32) * tf.reshape(tf.cast(n, tf.float32), (-1, 1)))
            .map(lambda t: t)
        ),
        r"a map over shuffled batches may mix their examples \(map before batch\)",
    ),
    "map that tells places in shuffled batches apart": (
        lambda: (
            Data.range(8)
            .shuffle(8)
            .batch(4, drop_remainder=True)
            .map(lambda n: n * tf.constant([1, 10, 100, 1000], tf.int64))
        ),
        r"a map over shuffled batches may mix their examples \(map before batch\)",
    ),
}


# Or too seldom different to wait for.
SAME_AFTER_ALL = {"table in map", "scan", "sample_from_datasets", "rejection_resample"} | {
    name for name in UNKNOWN if "order" in name
}


@pytest.mark.usually(
    "table in map",
    "captured data set",
    "py_function",
    "from_generator",
    "variable",
    "random data set",
    "sample_from_datasets",
    "broadcasting map of shuffled batches",
)
@pytest.mark.parametrize("name", UNKNOWN)
def test_what_is_not_known_is_not_taken_as_the_same(name):
    make, reason = UNKNOWN[name]
    verdict = examine(make())
    assert re.fullmatch(reason, verdict.reason), verdict.reason
    if name not in SAME_AFTER_ALL:
        assert len(readings(make(), times=5)) > 1


# --- Whole libraries --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    builder = builders.TinyImages(data_dir=tmp_path_factory.mktemp("tiny"))
    builder.download_and_prepare()
    return builder


@pytest.mark.parametrize("cache", [True, False])
def test_data_that_this_package_loads(tiny, cache):
    plain, _ = data.load(tiny, cache=cache, batch_size=4, image_size=4)
    assert examine(plain).reason == ""
    assert not examine(plain).is_shuffled
    assert batch_size_of(plain) == 4
    shuffled, _ = data.load(tiny, cache=cache, batch_size=3, image_size=4, shuffle=True)
    verdict = examine(shuffled)
    assert (verdict.reason, verdict.is_shuffled, verdict.shuffles_batches) == ("", True, False)
    few = data.few_shot(data.load(tiny, batch_size=None)[0], 2)
    assert examine(few.batch(2)).reason == ""
    part = data.subset(data.load(tiny, batch_size=None)[0], 0.5)
    assert examine(part.batch(2)).reason == ""


@pytest.mark.parametrize("shuffle_files", [True, False])
def test_data_of_tensorflow_datasets(tiny, shuffle_files):
    loaded = tiny.as_dataset("train", as_supervised=True, shuffle_files=shuffle_files)
    assert examine(loaded.batch(4)).reason == ""
    shuffled = examine(loaded.map(lambda x, y: (x / 255, y)).shuffle(20).batch(4).prefetch(1))
    assert (shuffled.reason, shuffled.is_shuffled) == ("", True)
    assert examine(loaded.shuffle(20).take(4)).differs
    assert (
        "random numbers"
        in examine(loaded.map(lambda x, y: (tf.image.random_flip_up_down(x), y))).reason
    )


@pytest.mark.parametrize("shuffle", [True, False])
def test_data_of_keras_utils(tmp_path, shuffle):
    folder = builders.image_folder(tmp_path, size=(6, 5))
    options = {"image_size": (4, 4), "batch_size": 3, "shuffle": shuffle, "verbose": 0}
    images = keras.utils.image_dataset_from_directory(folder, seed=0, **options)
    verdict = examine(images)
    assert (verdict.reason, verdict.is_shuffled) == ("", shuffle)
    assert batch_size_of(images) == 3
    x = np.arange(8.0)
    series = keras.utils.timeseries_dataset_from_array(x, x, 2, shuffle=shuffle, batch_size=3)
    assert (examine(series).reason, examine(series).is_shuffled) == ("", shuffle)


# --- Batch sizes ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "size"),
    [
        (lambda: numbers().batch(3), 3),
        (lambda: numbers().batch(3, drop_remainder=True), 3),
        (lambda: numbers().batch(3).map(lambda x, n: (x, n)).prefetch(1).repeat(2), 3),
        (lambda: Data.range(1, 6).map(tf.range).padded_batch(2).take(1), 2),
        (lambda: numbers().batch(3).concatenate(numbers().batch(4)), None),
        (lambda: Data.from_tensors(np.ones((7, 2))), 7),
        (lambda: numbers().batch(4).batch(2).unbatch(), None),
        (lambda: numbers().batch(4).flat_map(lambda x, n: Data.from_tensors(x)), None),
    ],
)
def test_the_size_of_batches(make, size):
    assert batch_size_of(make()) == size
