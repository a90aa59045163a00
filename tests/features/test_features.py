"""`FeatureCache.features`: features for something else than `fit`."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from sklearn.linear_model import LogisticRegression

import keras_transfer as ktf
from keras_transfer.features import FeatureCache
from tests.features.toys import assert_has_spread, dense_backbone, dense_model, fit, inputs

X, Y = inputs()


def layers_up_to(name):
    """What the toy's layers give by themselves."""
    value = X
    for layer in dense_backbone().layers:
        value = layer(value)
        if layer.name == name:
            return np.asarray(value)
    return np.asarray(value)


@pytest.mark.parametrize(
    ("boundary", "last"),
    [
        ("stem", "stem"),
        ("mid", "mid"),
        ("top", "top"),
        ("pooled", "top"),
        (1, "stem"),
        (3, "top"),
        (np.int64(2), "mid"),
    ],
)
def test_features_are_those_behind_the_layer_group(boundary, last):
    features = FeatureCache().features(dense_model(), X, boundary, verbose=0)
    assert_has_spread(features)
    np.testing.assert_allclose(features, layers_up_to(last), rtol=1e-5, atol=1e-6)
    others = {"stem", "mid", "top"} - {last}
    assert not any(np.allclose(features, layers_up_to(name), atol=1e-3) for name in others)


def test_stem_stands_for_the_first_group_whatever_its_name():
    backbone = dense_backbone(names=("low", "high"))
    features = FeatureCache().features(dense_model(backbone), X, "stem", verbose=0)
    np.testing.assert_allclose(features, backbone.layers[0](X), rtol=1e-5, atol=1e-6)


def test_pooled_features_are_what_the_head_pools():
    layers = [keras.Input((4, 4, 3)), keras.layers.Conv2D(5, 3, name="stem")]
    model = dense_model(keras.Sequential(layers), ktf.layers.RegressionHead(2, name="head"))
    images = np.random.default_rng(0).normal(size=(7, 4, 4, 3)).astype("float32")
    cache = FeatureCache()
    maps = cache.features(model, images, 1, verbose=0)
    pooled = cache.features(model, images, verbose=0)
    assert (maps.shape, pooled.shape) == ((7, 2, 2, 5), (7, 5))
    np.testing.assert_allclose(pooled, maps.mean((1, 2)), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        model.head.classify(pooled), model.predict(images, verbose=0), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("as_kind", [tf.constant, lambda x: x.astype("float64")])
def test_tensors_and_float64_give_the_same(as_kind):
    model = dense_model()
    features = FeatureCache().features(model, as_kind(X), verbose=0)
    assert features.dtype == np.float32
    np.testing.assert_array_equal(features, FeatureCache().features(model, X, verbose=0))


def test_what_trains_and_how_does_not_matter():
    model = dense_model()
    before = FeatureCache().features(model, X, verbose=0).copy()
    model.freeze()
    fit(model, X, Y, epochs=1)
    np.testing.assert_array_equal(FeatureCache().features(model, X, verbose=0), before)
    model.unfreeze()
    fit(model, X, Y, epochs=1)
    assert not np.allclose(FeatureCache().features(model, X, verbose=0), before)
    uncompiled = ktf.TransferModel(dense_backbone(), keras.layers.Dense(2))
    np.testing.assert_array_equal(FeatureCache().features(uncompiled, X, verbose=0), before)


# --- Data sets --------------------------------------------------------------------------------


def test_a_data_set_keeps_its_targets_batches_and_order():
    weights = np.arange(22.0)
    data = tf.data.Dataset.from_tensor_slices((X, {"y": Y}, weights)).batch(8)
    features = FeatureCache().features(dense_model(), data, verbose=0)
    assert isinstance(features, tf.data.Dataset)
    assert int(features.cardinality()) == 3
    assert features.element_spec[0].shape.as_list() == [None, 8]
    batches = list(features)
    assert [len(batch[0]) for batch in batches] == [8, 8, 6]
    found, y, w = (
        np.concatenate(parts) for parts in zip(*(_flat(b) for b in batches), strict=True)
    )
    np.testing.assert_allclose(found, layers_up_to("top"), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(y, Y)
    np.testing.assert_array_equal(w, weights)


def _flat(batch):
    x, y, w = batch
    return x, y["y"], w


def test_a_data_set_without_targets_gives_features_alone():
    data = tf.data.Dataset.from_tensor_slices(X).batch(8)
    features = FeatureCache().features(dense_model(), data, "mid", verbose=0)
    found = np.concatenate(list(features))
    np.testing.assert_allclose(found, layers_up_to("mid"), rtol=1e-5, atol=1e-6)


def test_features_of_a_data_set_train_another_model():
    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(8)
    features = FeatureCache().features(dense_model(), data, verbose=0)
    probe = keras.Sequential([keras.Input((8,)), keras.layers.Dense(2)])
    probe.compile("sgd", "mse")
    losses = probe.fit(features, epochs=5, shuffle=False, verbose=0).history["loss"]
    assert losses[-1] < losses[0]


def test_a_linear_probe_with_scikit_learn():
    labels = (Y[:, 0] > np.median(Y[:, 0])).astype(int)
    features = FeatureCache().features(dense_model(), X, "stem", verbose=0)
    assert LogisticRegression(C=100.0).fit(features, labels).score(features, labels) > 0.8


# --- Several tensors --------------------------------------------------------------------------


def test_masks_and_inputs_that_are_read_again_come_by_name():
    ids = keras.Input((3,), dtype="int32")
    x = keras.layers.Embedding(9, 4, mask_zero=True, name="low")(ids)
    x = keras.layers.LSTM(4, return_sequences=True, name="high")(x)
    model = dense_model(keras.Model(ids, x), ktf.layers.RegressionHead(2, name="head"))
    words = np.array([[1, 2, 3], [4, 0, 0]], "int32")
    features = FeatureCache().features(model, words, "low", verbose=0)
    np.testing.assert_allclose(
        features["keras_transfer/features@1"], model.backbone.model.get_layer("low")(words)
    )
    np.testing.assert_array_equal(features["keras_transfer/features@1/mask"], words != 0)
    # The model starts from them where it is given them.
    np.testing.assert_allclose(
        model.predict(dict(features), verbose=0), model.predict(words, verbose=0), rtol=1e-5
    )


# --- What is shown ----------------------------------------------------------------------------


def test_the_pass_shows_examples_per_second_and_bytes(capsys):
    FeatureCache().features(dense_model(), X, batch_size=8)
    shown = capsys.readouterr().out
    assert shown.startswith("Caching the features of the given data\n")
    assert "3/3" in shown
    assert "examples/s: " in shown
    assert "MB: 7.0400e-04" in shown  # 22 rows of 8 numbers
    FeatureCache().features(dense_model(), X, verbose=0)
    assert capsys.readouterr().out == ""


# --- Errors -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("boundary", "error", "message"),
    [
        ("tpo", ValueError, "There is no layer group 'tpo'. Did you mean 'top'"),
        ("head", ValueError, "`boundary` must be 'pooled' or one of 'stem', 'mid', 'top'"),
        (0, ValueError, "`boundary` must be at least 1"),
        (4, ValueError, "The backbone has 3 layer groups. Received: boundary=4"),
        (1.5, TypeError, "`boundary` must be a whole number"),
        (None, TypeError, "`boundary` must be a whole number"),
    ],
)
def test_a_boundary_that_is_not_there(boundary, error, message):
    with pytest.raises(error, match=message):
        FeatureCache().features(dense_model(), X, boundary, verbose=0)


def test_a_model_without_boundaries():
    class Own(keras.Model):
        def call(self, x):
            return x * self.scale

        def build(self, shape):
            self.scale = self.add_weight(shape=())

    own = Own(name="own")
    own(X)
    model = ktf.TransferModel(own, keras.layers.Dense(2))
    with pytest.raises(
        ValueError, match="'own' is not a functional model, so it has no boundaries"
    ):
        FeatureCache().features(model, X)
    with pytest.raises(TypeError, match=r"`model` must be a `TransferModel`. Received: model=<Seq"):
        FeatureCache().features(dense_backbone(), X)


def noise(x):
    return x + tf.random.uniform(())


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: [[1.0]] * 3, TypeError, "`data` must be arrays of numbers or a `tf.data.Dataset`"),
        (lambda: iter([X]), TypeError, "Received: list_iterator"),
        (lambda: None, TypeError, "Received: NoneType"),
        (
            lambda: tf.data.Dataset.from_tensor_slices(X).batch(2).map(noise),
            ValueError,
            r"Features of this data set cannot be kept: its pipeline draws random numbers \(Rand",
        ),
        (
            lambda: tf.data.Dataset.from_tensor_slices(X).shuffle(9).take(4).batch(2),
            ValueError,
            "take after shuffle yields another set of examples each time",
        ),
        (
            lambda: tf.data.Dataset.from_tensor_slices(X).batch(2).repeat(),
            ValueError,
            "The data set has no known length, so its features cannot be kept",
        ),
        (
            lambda: tf.data.Dataset.from_tensor_slices(X).batch(2).filter(lambda x: True),
            ValueError,
            "The data set has no known length, so its features cannot be kept",
        ),
    ],
)
def test_data_that_cannot_be_kept(make, error, message):
    with pytest.raises(error, match=message):
        FeatureCache().features(dense_model(), make(), verbose=0)


def test_a_random_layer():
    class Noise(keras.layers.Layer):
        def call(self, x):
            return noise(x)

    start = keras.Input((6,))
    x = keras.layers.Dense(8, name="top")(Noise()(keras.layers.Dense(8, name="stem")(start)))
    model = dense_model(keras.Model(start, x))
    message = r"Features cannot be kept: the frozen part of the model is not deterministic \(it ru"
    with pytest.raises(ValueError, match=message):
        FeatureCache().features(model, X, verbose=0)


def test_a_data_set_that_is_shorter_than_it_said():
    data = tf.data.Dataset.from_tensor_slices(X).batch(8)
    data = data.apply(tf.data.experimental.assert_cardinality(5))
    with pytest.raises(tf.errors.FailedPreconditionError, match="expected to contain 5 elements"):
        FeatureCache().features(dense_model(), data, verbose=0)
