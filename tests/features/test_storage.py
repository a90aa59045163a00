"""Where features are kept, when they are found again, and that nothing damaged is served."""

import gc
import json
import os
import signal
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_transfer as ktf
from keras_transfer.features import FeatureCache, _store
from keras_transfer.features._entry import EntryPoint
from keras_transfer.features._fingerprint import prefix_fingerprint
from keras_transfer.features._prefix import Prefix
from tests.features.toys import (
    HEAD_ONLY,
    PLAN,
    assert_same,
    dense_backbone,
    dense_model,
    fit,
    give_statistics,
    inputs,
    train,
)
from tests.processes import Child

X, Y = inputs()


def files_of(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def entries_of(folder):
    return sorted(path.name for path in folder.iterdir())


# --- Bytes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("on_disk", [True, False])
@pytest.mark.parametrize(("dtype", "size"), [(None, 4), ("float16", 2), ("bfloat16", 2)])
def test_sixteen_bits_take_half_the_room(dtype, size, on_disk, tmp_path):
    cache = FeatureCache(tmp_path if on_disk else None, dtype=dtype)
    features = cache.features(dense_model(), X, verbose=0)
    assert cache.nbytes == 22 * 8 * size
    assert features.dtype == np.float32
    exact = dense_backbone()(X).numpy()
    tolerance = {None: 1e-6, "float16": 2**-10, "bfloat16": 2**-7}[dtype]
    np.testing.assert_allclose(features, exact, rtol=tolerance, atol=1e-6)
    assert (np.abs(features - exact).max() > 1e-5) == (dtype is not None)
    stored = [path for path in files_of(tmp_path) if path.suffix == ".bin"]
    assert sum(path.stat().st_size for path in stored) == (cache.nbytes if on_disk else 0)


@pytest.mark.exhaustive
def test_pooled_features_of_a_mobilenet_take_five_kilobytes_an_image():
    backbone = keras.applications.MobileNetV2(
        weights=None, include_top=False, input_shape=(32, 32, 3), alpha=1.0
    )
    model = ktf.TransferModel(backbone, ktf.layers.ClassificationHead(10))
    cache = FeatureCache()
    cache.features(model, np.ones((3, 32, 32, 3), "float32"), verbose=0)
    assert cache.nbytes == 3 * 1280 * 4


def test_numbers_beyond_float16_are_an_error():
    backbone = keras.Sequential([keras.Input((6,)), keras.layers.Dense(8, name="stem")])
    model = dense_model(backbone)
    with pytest.raises(
        ValueError, match=r"Features reach .*, which does not fit into float16. Use"
    ):
        FeatureCache(dtype="float16").features(model, 1e6 * X, verbose=0)
    found = FeatureCache(dtype="bfloat16").features(model, 1e6 * X, verbose=0)
    assert np.isfinite(found).all()


# --- Found again ------------------------------------------------------------------------------


def passes(cache, model, data=X, *, boundary="pooled", capsys):
    capsys.readouterr()
    cache.features(model, data, boundary)
    return capsys.readouterr().out.count("Caching the features")


@pytest.mark.usually("False")
@pytest.mark.parametrize("on_disk", [True, False])
def test_features_are_found_again(on_disk, tmp_path, capsys):
    cache = FeatureCache(tmp_path if on_disk else None)
    assert passes(cache, dense_model(), capsys=capsys) == 1
    assert passes(cache, dense_model(), capsys=capsys) == 0
    assert passes(cache, dense_model(), X.copy(), capsys=capsys) == 0
    other = FeatureCache(tmp_path if on_disk else None)
    assert passes(other, dense_model(), capsys=capsys) == (0 if on_disk else 1)
    # Another boundary costs a pass of its own, and leaves the first where it was.
    assert passes(cache, dense_model(), boundary="mid", capsys=capsys) == 1
    assert passes(cache, dense_model(), capsys=capsys) == 0


def test_training_finds_what_features_has_left_and_the_other_way_round(capsys):
    cache = FeatureCache()
    model = dense_model()
    assert passes(cache, model, capsys=capsys) == 1
    first = fit(model, X, Y, plan=HEAD_ONLY, cache_features=cache)
    assert first.passes == []
    again = fit(model, X, Y, plan=HEAD_ONLY, cache_features=cache, batch_size=5)
    assert again.passes == []
    # The head has trained since, but it does not matter to what lies before it.
    assert passes(cache, model, capsys=capsys) == 0


def test_batches_are_cut_anew_from_what_was_kept():
    cache = FeatureCache()
    train(dense_model, cache, X, Y, plan=HEAD_ONLY, batch_size=8)
    smaller = train(dense_model, cache, X, Y, plan=HEAD_ONLY, batch_size=4, shuffle=False)
    assert smaller.passes == []
    assert "6/6" in smaller.printed
    uncached = train(dense_model, False, X, Y, plan=HEAD_ONLY, batch_size=4, shuffle=False)
    np.testing.assert_allclose(smaller.history["loss"], uncached.history["loss"], rtol=1e-5)


def steps_model(head):
    """Features of three steps, which heads pool."""
    layers = [keras.Input((3, 2)), keras.layers.Dense(4, name="stem", kernel_initializer="ones")]
    return dense_model(keras.Sequential(layers), head)


def test_heads_that_pool_alike_share_pooled_features(capsys):
    cache = FeatureCache()
    steps = X.reshape(22, 3, 2)

    def passes_with(head):
        return passes(cache, steps_model(head), steps, capsys=capsys)

    head = ktf.layers.RegressionHead
    assert passes_with(head(3)) == 1
    assert passes_with(head(5, dropout=0.5, hidden_units=4)) == 0
    assert passes_with(head(3, pooling="max")) == 1
    pooling, dense = keras.layers.GlobalAveragePooling1D, keras.layers.Dense
    assert passes_with(keras.Sequential([keras.Input((3, 4)), pooling(), dense(2)])) == 1
    assert passes_with(keras.Sequential([keras.Input((3, 4)), pooling(), dense(7)])) == 0
    pooling = keras.layers.GlobalMaxPooling1D
    assert passes_with(keras.Sequential([keras.Input((3, 4)), pooling(), dense(2)])) == 1
    # 22 rows of 4 numbers each: what is kept is pooled.
    assert cache.nbytes == 4 * 22 * 4 * 4


def test_what_was_used_longest_ago_makes_room(capsys):
    model = dense_model()
    cache = FeatureCache(max_bytes=2 * 22 * 8 * 4)
    assert passes(cache, model, boundary="stem", capsys=capsys) == 1
    assert passes(cache, model, boundary="mid", capsys=capsys) == 1
    assert passes(cache, model, boundary="stem", capsys=capsys) == 0
    assert passes(cache, model, boundary="top", capsys=capsys) == 1
    assert passes(cache, model, boundary="stem", capsys=capsys) == 0
    assert passes(cache, model, boundary="mid", capsys=capsys) == 1
    assert cache.nbytes == cache.max_bytes
    cache.clear()
    assert cache.nbytes == 0
    assert passes(cache, model, boundary="mid", capsys=capsys) == 1


def test_features_cannot_be_changed_by_accident(tmp_path):
    for cache in (FeatureCache(), FeatureCache(tmp_path)):
        features = cache.features(dense_model(), X, verbose=0)
        with pytest.raises(ValueError, match="read-only"):
            features -= 1.0
    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(4)
    first, _ = next(iter(cache.features(dense_model(), data, verbose=0)))
    np.testing.assert_array_equal(first, features[:4])


def test_nothing_is_left_in_memory_after_a_fit(monkeypatch):
    made = []
    finish = _store.MemoryWriter.finish

    def watched(self, structure):
        table = finish(self, structure)
        made.append(weakref.ref(table))
        return table

    monkeypatch.setattr(_store.MemoryWriter, "finish", watched)
    run = train(dense_model, "auto", X, Y, plan=PLAN, validation_data=(X, Y))
    gc.collect()
    assert len(made) == 4
    assert [table() for table in made] == [None] * 4
    del run


# --- Fingerprints -----------------------------------------------------------------------------


def normalized(**options):
    """Dense, BatchNorm, Dense."""
    start = keras.Input((6,))
    first, second, _ = dense_backbone().layers
    x = second(keras.layers.BatchNormalization(name="norm")(first(start)))
    return ktf.layers.PretrainedBackbone(
        keras.Model(start, x, name="body"), groups="blocks", name="backbone", **options
    )


def model_of(change=lambda model: None, head=None, **options):
    keras.utils.clear_session(free_memory=False)
    model = ktf.TransferModel(normalized(**options), head or keras.layers.Dense(2, name="head"))
    change(model)
    return model


MIDDLE, END = EntryPoint(1), EntryPoint(2)


def fingerprint_of(model, point=END, fold_constants=False):
    prefix = Prefix(model, [point], fold_constants=fold_constants)
    return prefix_fingerprint(prefix, point, tf.TensorSpec((None, 6)))


def fingerprint(*arguments, point=END, fold_constants=False, **options):
    return fingerprint_of(model_of(*arguments, **options), point, fold_constants)


def layer(model, name):
    return model.backbone.model.get_layer(name)


def nudge(variable):
    value = variable.numpy()
    value.flat[0] = np.nextafter(value.flat[0], np.float32(9))
    variable.assign(value)


def halved(x):
    return x / 2


def edited():
    namespace = {"__name__": __name__}
    exec("def halved(x):\n    return x / 3\n", namespace)
    return namespace["halved"]


def divided_by(divisor):
    return lambda x: x / divisor


def helped(divisor):
    namespace = {"__name__": __name__, "helper": divided_by(divisor)}
    exec("def divided(x):\n    return helper(x)\n", namespace)
    return namespace["divided"]


def activation(name):
    return keras.layers.Activation(name, name=name)


@keras.saving.register_keras_serializable(package="tests")
class Scale(keras.layers.Layer):
    """A layer of the user's own."""

    def call(self, x):
        return 2.0 * x


class ScaleEdited(Scale):
    def call(self, x):
        return 3.0 * x


ScaleEdited.__name__, ScaleEdited.__qualname__ = "Scale", "Scale"


def in_preprocessing(layer):
    return fingerprint(preprocess=keras.Sequential([keras.Input((6,)), layer]))


OTHER = {
    "a layer of one's own": lambda: in_preprocessing(Scale()),
    "its code": lambda: in_preprocessing(ScaleEdited()),
    "a closure": lambda: fingerprint(preprocess=divided_by(5.0)),
    "what it closes over": lambda: fingerprint(preprocess=divided_by(6.0)),
    "what a function calls": lambda: fingerprint(preprocess=helped(7.0)),
    "the code of what it calls": lambda: fingerprint(preprocess=helped(8.0)),
    "a layer called like its setting": lambda: in_preprocessing(activation("tanh")),
    "its setting": lambda: in_preprocessing(activation("relu")),
    "a weight": lambda: fingerprint(lambda m: nudge(layer(m, "stem").kernel)),
    "a bias": lambda: fingerprint(lambda m: nudge(layer(m, "mid").bias)),
    "a statistic": lambda: fingerprint(lambda m: nudge(layer(m, "norm").moving_mean)),
    "the BatchNorm policy": lambda: fingerprint(batch_norm="freeze"),
    "preprocessing": lambda: fingerprint(preprocess=halved),
    "the code of preprocessing": lambda: fingerprint(preprocess=edited()),
    "a layer as preprocessing": lambda: fingerprint(preprocess=keras.layers.Rescaling(0.5)),
    "its settings": lambda: fingerprint(preprocess=keras.layers.Rescaling(0.25)),
    "the boundary": lambda: fingerprint(point=MIDDLE),
    "folding": lambda: fingerprint(fold_constants=True),
    "the precision": lambda: in_precision("mixed_bfloat16"),
    "the activation": lambda: fingerprint(
        lambda m: setattr(layer(m, "stem"), "activation", keras.activations.relu)
    ),
}


def in_precision(policy):
    keras.config.set_dtype_policy(policy)
    model = ktf.TransferModel(normalized(), keras.layers.Dense(2, name="head"))
    return fingerprint_of(model)


def test_a_fingerprint_tells_apart_what_gives_other_features():
    prints = {"nothing": fingerprint(), **{name: make() for name, make in OTHER.items()}}
    assert len(set(prints.values())) == len(prints), sorted(prints.items(), key=lambda p: p[1])


SAME = {
    "built again": lambda: fingerprint(),
    "with other entry points": lambda: prefix_fingerprint(
        Prefix(model_of(), [MIDDLE, END]), END, tf.TensorSpec((None, 6))
    ),
    "a flag": lambda: fingerprint(lambda m: m.freeze()),
    "weights behind the boundary": lambda: fingerprint(
        lambda m: nudge(layer(m, "mid").kernel), point=MIDDLE
    ),
}


@pytest.mark.parametrize("name", SAME)
def test_a_fingerprint_is_the_same_for_what_gives_the_same_features(name):
    point = MIDDLE if "behind" in name else END
    assert SAME[name]() == fingerprint(point=point)


@pytest.mark.parametrize(
    "change",
    [
        lambda x: np.concatenate([x[:1] * 1.0000001, x[1:]]),
        lambda x: x.astype("float64") + 0.5,
        lambda x: x[:-1],
        lambda x: x[::-1],
    ],
    ids=["a bit", "all", "fewer", "another order"],
)
def test_other_data_has_other_features(change, capsys):
    cache = FeatureCache()
    assert passes(cache, dense_model(), capsys=capsys) == 1
    assert passes(cache, dense_model(), change(X), capsys=capsys) == 1


def test_a_data_set_is_itself_and_a_key_names_it_across_caches(tmp_path, capsys):
    def dataset():
        return tf.data.Dataset.from_tensor_slices((X, Y)).batch(8)

    cache, one = FeatureCache(), dataset()
    assert passes(cache, dense_model(), one, capsys=capsys) == 1
    assert passes(cache, dense_model(), one, capsys=capsys) == 0
    assert passes(cache, dense_model(), dataset(), capsys=capsys) == 1
    for expected in (1, 0):
        named = FeatureCache(tmp_path, key="toys")
        assert passes(named, dense_model(), dataset(), capsys=capsys) == expected
    assert (
        passes(FeatureCache(tmp_path, key="others"), dense_model(), dataset(), capsys=capsys) == 1
    )


# --- On disk ----------------------------------------------------------------------------------


def irregular():
    parts = [tf.data.Dataset.from_tensors(inputs(n, seed=n)) for n in (4, 7, 2)]
    return parts[0].concatenate(parts[1]).concatenate(parts[2])


@pytest.mark.usually("irregular batches")
@pytest.mark.parametrize("kind", ["irregular batches", "masks", "bfloat16"])
def test_a_training_from_files_is_the_same(kind, tmp_path):
    data, build = (X, Y), dense_model
    if kind == "irregular batches":
        data = (irregular(),)
    if kind == "masks":
        data = (np.tile([[1, 2, 0], [3, 0, 0]], (11, 1)), Y)

        def build():
            layers = [keras.Input((3,), dtype="int32")]
            layers.append(keras.layers.Embedding(5, 4, mask_zero=True, name="low"))
            layers.append(keras.layers.LSTM(4, return_sequences=True, name="high"))
            head = ktf.layers.RegressionHead(2, name="head")
            return dense_model(keras.Sequential(layers), head)

    if kind == "bfloat16":

        def build():
            keras.config.set_dtype_policy("mixed_bfloat16")
            return dense_model(head=ktf.layers.RegressionHead(2, name="head"))

    plan = ktf.UnfreezingPlan([ktf.Stage("top", depth=2, epochs=2)])
    runs = [
        train(build, FeatureCache(tmp_path, key="toys"), *data, plan=plan, shuffle=False)
        for _ in range(2)
    ]
    assert len(runs[0].passes) >= 1
    assert runs[1].passes == []
    assert_same(runs[0], runs[1])
    assert_same(runs[0], train(build, False, *data, plan=plan, shuffle=False))


def rewrite(path, change):
    """Changes what stands in a manifest, and mends its checksum."""
    manifest = json.loads(path.read_text())
    content = json.loads(manifest["content"])
    change(content)
    text = json.dumps(content)
    path.write_text(
        json.dumps({"sha256": _store.hashlib.sha256(text.encode()).hexdigest(), "content": text})
    )


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def swap_columns(folder):
    """Puts the features of other data, whole and in order, in the place of these."""
    other = FeatureCache(folder / "other")
    other.features(dense_model(), X + 1, verbose=0)
    (entry,) = (folder / "other").iterdir()
    (own,) = [path for path in folder.iterdir() if path.name != "other"]
    for path in entry.iterdir():
        (own / path.name).write_bytes(path.read_bytes())


DAMAGE = {
    "truncated": (lambda b, m: os.truncate(b, 100), "does not have its 704 bytes"),
    "emptied": (lambda b, m: b.write_bytes(b""), "does not have its 704 bytes"),
    "a bit flipped": (lambda b, m: flip(b), "the checksum of .*0.bin does not agree"),
    "manifest truncated": (lambda b, m: os.truncate(m, 40), "manifest.json cannot be read"),
    "manifest gone": (lambda b, m: m.unlink(), "manifest.json cannot be read"),
    "manifest not JSON": (lambda b, m: m.write_bytes(b"\xff\x00"), "manifest.json cannot be read"),
    "manifest changed": (
        lambda b, m: m.write_text(m.read_text().replace("22", "21")),
        "the checksum of .*manifest.json does not agree",
    ),
    "another version": (
        lambda b, m: rewrite(m, lambda c: c.update(format=99)),
        "was written by another version, or for other data",
    ),
    "foreign": (
        lambda b, m: swap_columns(b.parent.parent),
        "was written by another version, or for other data",
    ),
}


@pytest.mark.usually(
    "truncated", "a bit flipped", "manifest changed", "manifest not JSON", "foreign"
)
@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_features_are_never_served(name, tmp_path, capsys):
    damage, message = DAMAGE[name]
    good = FeatureCache(tmp_path).features(dense_model(), X, verbose=0).copy()
    (entry,) = tmp_path.iterdir()
    damage(entry / "0.bin", entry / "manifest.json")
    with pytest.warns(UserWarning, match=f"Cached features are damaged and are made.*{message}"):
        assert passes(FeatureCache(tmp_path), dense_model(), capsys=capsys) == 1
    mended = FeatureCache(tmp_path)
    assert passes(mended, dense_model(), capsys=capsys) == 0
    np.testing.assert_array_equal(mended.features(dense_model(), X, verbose=0), good)
    assert [n for n in entries_of(tmp_path) if n != "other"] == [entry.name]


def test_an_entry_that_is_a_file_or_an_empty_folder(tmp_path, capsys):
    FeatureCache(tmp_path).features(dense_model(), X, verbose=0)
    (entry,) = tmp_path.iterdir()
    for path in entry.iterdir():
        path.unlink()
    with pytest.warns(UserWarning, match="manifest.json cannot be read"):
        assert passes(FeatureCache(tmp_path), dense_model(), capsys=capsys) == 1
    assert passes(FeatureCache(tmp_path), dense_model(), capsys=capsys) == 0


def test_a_directory_may_be_emptied_between_runs(tmp_path, capsys):
    cache = FeatureCache(tmp_path / "made" / "if need be")
    assert passes(cache, dense_model(), capsys=capsys) == 1
    for path in files_of(tmp_path):
        path.unlink()
    for path in sorted(tmp_path.rglob("*"), reverse=True):
        path.rmdir()
    assert passes(FeatureCache(cache.directory), dense_model(), capsys=capsys) == 1


def test_a_full_disk_is_said_and_nothing_is_left(tmp_path, monkeypatch):
    def on_full_disk(path, mode="r"):
        return open("/dev/full" if str(path).endswith("0.bin") else path, mode)

    monkeypatch.setattr(_store, "open", on_full_disk, raising=False)
    big = np.zeros((4000, 6), "float32")
    with pytest.raises(OSError, match="The disk is full: features cannot be written to") as error:
        FeatureCache(tmp_path).features(dense_model(), big, verbose=0)
    assert error.value.errno == 28
    assert "Delete old entries" in str(error.value)
    assert entries_of(tmp_path) == []
    with pytest.raises(OSError, match="The disk is full"):
        train(dense_model, FeatureCache(tmp_path), X, Y, plan=HEAD_ONLY)
    assert entries_of(tmp_path) == []
    monkeypatch.undo()
    assert train(dense_model, FeatureCache(tmp_path), X, Y, plan=HEAD_ONLY).passes == ["training"]


def test_features_beyond_the_budget_leave_nothing_on_disk(tmp_path):
    with pytest.raises(ValueError, match="the features take more than 300 bytes"):
        FeatureCache(tmp_path, max_bytes=300).features(dense_model(), X, verbose=0)
    assert entries_of(tmp_path) == []


def test_a_pass_that_fails_leaves_nothing(tmp_path):
    def broken():
        yield X[:8]
        raise RuntimeError("the camera fell off")

    data = tf.data.Dataset.from_generator(broken, output_signature=tf.TensorSpec((8, 6)))
    data = data.apply(tf.data.experimental.assert_cardinality(2))
    with pytest.raises(tf.errors.UnknownError, match="the camera fell off"):
        FeatureCache(tmp_path).features(dense_model(), data, verbose=0)
    assert entries_of(tmp_path) == []


# --- Several processes ------------------------------------------------------------------------


def test_killed_racing_and_later_processes(tmp_path, capsys):
    """One process is killed in its pass; two fill the same entry at once; a third finds it."""
    folder, meeting = tmp_path / "kept", tmp_path / "meeting"
    meeting.mkdir()
    killed, *racing = (
        Child("tests.features.storage_child", folder, meeting, role)
        for role in ("killed", "racing", "racing")
    )
    assert killed.wait(timeout=240) == -signal.SIGKILL, killed.err
    assert "half way" in killed.out
    for process in racing:
        assert process.wait(timeout=240) == 0, process.err
        assert process.out.count("Caching the features") == 1, "both were to fill it"
    half_written = [n for n in entries_of(folder) if n.startswith(".writing-")]
    assert len(half_written) == 1
    (entry,) = [n for n in entries_of(folder) if not n.startswith(".")]
    # What the killed process had written was of the same data, and is not found.
    cache = FeatureCache(folder, key="shared")
    data = tf.data.Dataset.from_tensor_slices(X).batch(2)
    assert passes(cache, dense_model(), data, capsys=capsys) == 0
    found = np.concatenate(list(cache.features(dense_model(), data, verbose=0)))
    np.testing.assert_allclose(found, dense_backbone()(X), rtol=1e-5, atol=1e-6)
    assert entry in entries_of(folder)


# --- Folding ----------------------------------------------------------------------------------


def convolutions():
    layers = [keras.Input((16, 16, 3))]
    for number in range(4):
        layers.append(keras.layers.Conv2D(8, 3, padding="same", use_bias=False, name=f"c{number}"))
        layers.append(keras.layers.BatchNormalization())
        layers.append(keras.layers.ReLU(6.0))
    return keras.Sequential(layers)


def test_folded_constants_move_features_by_rounding_only():
    images = np.random.default_rng(0).uniform(-1, 1, (16, 16, 16, 3)).astype("float32")
    backbone = convolutions()
    give_statistics(backbone, images)
    model = dense_model(backbone, ktf.layers.RegressionHead(2, name="head"))
    cache = FeatureCache(fold_constants=True)
    for boundary in (2, "pooled"):
        plain = FeatureCache().features(model, images, boundary, verbose=0)
        folded = cache.features(model, images, boundary, verbose=0)
        assert np.ptp(plain) > 0.1
        assert np.abs(folded - plain).max() <= 2e-5 * np.abs(plain).max()
        assert np.any(folded != plain), "control: something was folded"


# --- Arguments --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"directory": 3}, TypeError, "`directory` must be a path. Received: directory=3"),
        ({"max_bytes": 0}, ValueError, "`max_bytes` must be at least 1"),
        ({"max_bytes": 1.5}, TypeError, "`max_bytes` must be a whole number"),
        ({"dtype": "float61"}, ValueError, "Did you mean 'float16'"),
        ({"key": 7}, TypeError, "`key` must be a string. Received: key=7"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        FeatureCache(**arguments)


def test_it_says_what_it_holds(tmp_path):
    cache = FeatureCache(tmp_path)
    cache.features(dense_model(), X, verbose=0)
    assert repr(cache) == f"<FeatureCache in {tmp_path}, 1 tables in use, 704 bytes>"
    assert repr(FeatureCache()) == "<FeatureCache in memory, 0 tables in use, 0 bytes>"
