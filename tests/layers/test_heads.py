import json

import hypothesis.strategies as st
import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra import numpy as hnp

from keras_transfer.layers import ClassificationHead, RegressionHead

IMAGES = np.random.default_rng(0).normal(size=(3, 4, 5, 6)).astype("float32")
SEQUENCES = np.random.default_rng(1).normal(size=(4, 5, 3)).astype("float32")
# Padding behind, padding in front, nothing masked, everything masked.
MASK = np.array([[1, 1, 0, 0, 0], [0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]], bool)


@pytest.fixture
def mixed_float16():
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    yield
    keras.config.set_dtype_policy(before)


@pytest.fixture
def channels_first():
    before = keras.config.image_data_format()
    keras.config.set_image_data_format("channels_first")
    yield
    keras.config.set_image_data_format(before)


def pool(features, pooling, mask=None, **kwargs):
    return np.asarray(ClassificationHead(3, pooling=pooling, **kwargs).pool(features, mask))


def reference(features, mask, pooling):
    """Pools one example at a time, with what the mask leaves."""
    rows = []
    for steps, kept in zip(features, mask, strict=True):
        valid = steps[kept]
        if not len(valid):
            valid = np.zeros((1, features.shape[-1]), features.dtype)
        parts = {"avg": valid.mean(0), "max": valid.max(0), "last": valid[-1], "first": valid[0]}
        parts["avg_max"] = np.concatenate([parts["avg"], parts["max"]])
        rows.append(parts[pooling])
    return np.stack(rows)


# --- Pooling --------------------------------------------------------------------------------


def test_images_are_averaged_over_their_positions_by_default():
    np.testing.assert_allclose(pool(IMAGES, "auto"), IMAGES.mean((1, 2)), rtol=1e-5, atol=1e-6)


def test_avg_max_puts_average_and_maximum_side_by_side():
    expected = np.concatenate([IMAGES.mean((1, 2)), IMAGES.max((1, 2))], axis=1)
    np.testing.assert_allclose(pool(IMAGES, "avg_max"), expected, rtol=1e-5, atol=1e-6)


def test_flatten_keeps_every_position():
    np.testing.assert_array_equal(pool(IMAGES, "flatten"), IMAGES.reshape(3, -1))


def test_vectors_are_left_alone():
    vectors = IMAGES[:, 0, 0]
    for pooling in ("auto", "flatten", None):
        np.testing.assert_array_equal(pool(vectors, pooling), vectors)


def test_volumes_are_averaged_over_all_their_axes():
    volumes = np.random.default_rng(2).normal(size=(2, 3, 4, 5, 6)).astype("float32")
    np.testing.assert_allclose(pool(volumes, "auto"), volumes.mean((1, 2, 3)), atol=1e-6)


@pytest.mark.parametrize("pooling", ["auto", "avg", "max", "avg_max", "flatten"])
def test_channels_first_pools_what_channels_last_pools(pooling):
    turned = np.moveaxis(IMAGES, -1, 1)
    first = pool(turned, pooling, data_format="channels_first")
    if pooling == "flatten":
        np.testing.assert_array_equal(first, turned.reshape(3, -1))
    else:
        np.testing.assert_allclose(first, pool(IMAGES, pooling), atol=1e-6)


@pytest.mark.parametrize("pooling", ["avg", "max", "avg_max", "last", "first"])
def test_sequences_with_channels_first_honour_their_mask(pooling):
    turned = np.swapaxes(SEQUENCES, 1, 2)
    pooled = pool(turned, pooling, MASK, data_format="channels_first")
    np.testing.assert_allclose(pooled, reference(SEQUENCES, MASK, pooling), atol=1e-6)


def test_the_image_setting_of_keras_does_not_turn_sequences_around(channels_first):
    np.testing.assert_allclose(pool(SEQUENCES, "auto"), SEQUENCES.mean(1), atol=1e-6)
    turned = np.moveaxis(IMAGES, -1, 1)
    np.testing.assert_allclose(pool(turned, "auto"), IMAGES.mean((1, 2)), atol=1e-6)


def test_a_built_head_remembers_where_the_channels_were(channels_first):
    head = ClassificationHead(3)
    turned = np.moveaxis(IMAGES, -1, 1)
    outputs = np.asarray(head(turned))
    config = head.get_config()
    assert config["data_format"] == "channels_first"
    keras.config.set_image_data_format("channels_last")
    copy = ClassificationHead.from_config(config)
    copy.build(turned.shape)
    copy.set_weights(head.get_weights())
    np.testing.assert_array_equal(np.asarray(copy(turned)), outputs)


@pytest.mark.parametrize("pooling", ["avg", "max", "avg_max", "last", "first"])
def test_masked_steps_do_not_count(pooling):
    pooled = pool(SEQUENCES, pooling, MASK)
    np.testing.assert_allclose(pooled, reference(SEQUENCES, MASK, pooling), atol=1e-6)


@pytest.mark.parametrize("pooling", ["avg", "max", "avg_max", "last", "first"])
def test_what_stands_in_masked_steps_is_never_read(pooling):
    spoiled = np.where(MASK[..., None], SEQUENCES, np.nan).astype("float32")
    np.testing.assert_array_equal(pool(spoiled, pooling, MASK), pool(SEQUENCES, pooling, MASK))


@given(
    hnp.arrays("float32", (2, 6, 3), elements=st.floats(-50, 50, width=32)),
    hnp.arrays("bool", (2, 6)),
    st.sampled_from(["avg", "max", "avg_max", "last", "first"]),
)
def test_pooling_agrees_with_one_example_at_a_time(features, mask, pooling):
    pooled = pool(features, pooling, mask)
    np.testing.assert_allclose(pooled, reference(features, mask, pooling), atol=1e-4)


@given(hnp.arrays("bool", (2, 6)), st.sampled_from(["avg", "max", "last", "first"]))
def test_padding_more_changes_nothing(mask, pooling):
    features = np.random.default_rng(5).normal(size=(2, 6, 3)).astype("float32")
    longer = np.pad(features, ((0, 0), (2, 3), (0, 0)), constant_values=7.0)
    longer_mask = np.pad(mask, ((0, 0), (2, 3)))
    np.testing.assert_allclose(
        pool(longer, pooling, longer_mask), pool(features, pooling, mask), atol=1e-6
    )


def test_a_mask_over_steps_covers_the_images_of_those_steps():
    films = np.random.default_rng(3).normal(size=(2, 3, 4, 4, 5)).astype("float32")
    mask = np.array([[1, 0, 0], [1, 1, 0]], bool)
    expected = np.stack([films[0, :1].mean((0, 1, 2)), films[1, :2].mean((0, 1, 2))])
    np.testing.assert_allclose(pool(films, "avg", mask), expected, atol=1e-6)


@pytest.mark.usually("auto", "last")
@pytest.mark.parametrize("pooling", ["auto", "max", "last", "first"])
def test_a_masking_layer_below_reaches_the_head(pooling):
    ids = keras.Input((None,), dtype="int32")
    embedding = keras.layers.Embedding(9, 4, mask_zero=True)
    head = ClassificationHead(3, pooling=pooling)
    model = keras.Model(ids, head(embedding(ids)))
    short = model.predict(np.array([[3, 5]]), verbose=0)
    padded = model.predict(np.array([[3, 5, 0, 0, 0]]), verbose=0)
    np.testing.assert_allclose(padded, short, atol=1e-6)


def test_pooled_outputs_carry_no_mask_and_outputs_for_each_step_do():
    ids = keras.Input((5,), dtype="int32")
    features = keras.layers.Embedding(9, 4, mask_zero=True)(ids)
    pooled = ClassificationHead(3)(features)
    each = ClassificationHead(3, pooling=None)(features)
    assert pooled.shape == (None, 3)
    assert getattr(pooled, "_keras_mask", None) is None
    assert each.shape == (None, 5, 3)
    assert each._keras_mask.shape == (None, 5)


# --- What comes out -------------------------------------------------------------------------


@pytest.mark.parametrize("hidden_units", [None, 7, (7, 5)])
def test_call_is_classify_of_pool(hidden_units):
    head = ClassificationHead(3, dropout=0.3, hidden_units=hidden_units)
    whole = np.asarray(head(IMAGES))
    apart = np.asarray(head.classify(head.pool(IMAGES)))
    np.testing.assert_array_equal(whole, apart)
    np.testing.assert_allclose(whole.sum(1), 1.0, rtol=1e-6)
    assert head.compute_output_shape(IMAGES.shape) == whole.shape


def test_hidden_layers_are_dense_layers_under_fixed_names():
    head = ClassificationHead(3, hidden_units=[7, 5], name="head")
    head.build((None, 4, 4, 6))
    shapes = {variable.path: tuple(variable.shape) for variable in head.trainable_variables}
    assert shapes == {
        "head/hidden_1/kernel": (6, 7),
        "head/hidden_1/bias": (7,),
        "head/hidden_2/kernel": (7, 5),
        "head/hidden_2/bias": (5,),
        "head/output/kernel": (5, 3),
        "head/output/bias": (3,),
    }


def test_outputs_follow_from_the_weights():
    head = RegressionHead(2, hidden_units=4)
    outputs = np.asarray(head(IMAGES))
    kernel_1, bias_1, kernel_2, bias_2 = head.get_weights()
    hidden = np.maximum(IMAGES.mean((1, 2)) @ kernel_1 + bias_1, 0)
    np.testing.assert_allclose(outputs, hidden @ kernel_2 + bias_2, rtol=1e-4, atol=1e-5)


def test_dropout_is_on_only_while_training():
    keras.utils.set_random_seed(0)
    head = ClassificationHead(3, dropout=0.5)
    quiet = np.asarray(head(IMAGES))
    np.testing.assert_array_equal(np.asarray(head(IMAGES, training=False)), quiet)
    assert not np.allclose(np.asarray(head(IMAGES, training=True)), quiet)


def test_one_output_with_sigmoid_lies_between_0_and_1():
    outputs = np.asarray(ClassificationHead(1, activation="sigmoid")(IMAGES))
    assert outputs.shape == (3, 1)
    assert ((outputs > 0) & (outputs < 1)).all()


def test_logits_come_out_where_there_is_no_activation():
    head = ClassificationHead(3, activation=None)
    logits = np.asarray(head(IMAGES))
    kernel, bias = head.get_weights()
    np.testing.assert_allclose(logits, IMAGES.mean((1, 2)) @ kernel + bias, atol=1e-5)
    assert head.activation is keras.activations.linear


# --- Precision ------------------------------------------------------------------------------


def test_outputs_are_float32_under_mixed_precision(mixed_float16):
    head = ClassificationHead(3, hidden_units=8, dropout=0.1)
    outputs = head(IMAGES)
    assert keras.backend.standardize_dtype(outputs.dtype) == "float32"
    assert keras.backend.standardize_dtype(head.pool(IMAGES).dtype) == "float16"
    assert {variable.dtype for variable in head.trainable_variables} == {"float32"}
    np.testing.assert_allclose(np.asarray(outputs).sum(1), 1.0, rtol=1e-6)


def test_pooling_alone_equals_pooling_inside_call_under_mixed_precision(mixed_float16):
    head = ClassificationHead(3, hidden_units=8)
    np.testing.assert_array_equal(
        np.asarray(head(IMAGES)), np.asarray(head.classify(head.pool(IMAGES)))
    )


def test_the_mean_of_a_long_masked_sequence_does_not_overflow_float16(mixed_float16):
    features = np.full((1, 2000, 2), 100.0, "float16")
    mask = np.ones((1, 2000), bool)
    np.testing.assert_allclose(pool(features, "avg", mask), 100.0)


def test_float64_is_kept():
    head = RegressionHead(1, dtype="float64")
    assert keras.backend.standardize_dtype(head(IMAGES.astype("float64")).dtype) == "float64"


# --- Dictionaries ---------------------------------------------------------------------------


def test_a_dictionary_needs_a_key_and_the_error_names_the_keys():
    features = {"sequence_output": SEQUENCES, "pooled_output": SEQUENCES[:, 0]}
    with pytest.raises(ValueError, match="`features_key=` one of 'sequence_output', 'pooled"):
        ClassificationHead(3)(features)
    with pytest.raises(ValueError, match="Did you mean 'pooled_output'"):
        ClassificationHead(3, features_key="pooled_outputs")(features)


def test_the_features_under_the_key_are_taken(tmp_path):
    ids = keras.Input((5,), dtype="int32")
    sequence = keras.layers.Embedding(9, 4, mask_zero=True)(ids)
    features = {"sequence_output": sequence, "pooled_output": sequence[:, 0]}
    head = ClassificationHead(3, features_key="sequence_output")
    model = keras.Model(ids, head(features))
    tokens = np.array([[3, 5, 0, 0, 0]])
    outputs = model.predict(tokens, verbose=0)
    pooled = np.asarray(model.layers[1](tokens))[:, :2].mean(1)
    np.testing.assert_allclose(outputs, np.asarray(head.classify(pooled)), atol=1e-6)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.predict(tokens, verbose=0), outputs)


def test_several_feature_tensors_are_refused():
    with pytest.raises(ValueError, match="takes one feature tensor"):
        ClassificationHead(3)([IMAGES, IMAGES])


# --- Config and files -----------------------------------------------------------------------

HEADS = [
    ClassificationHead(4, name="head"),
    ClassificationHead(1, activation="sigmoid", pooling="avg_max", dropout=0.25),
    ClassificationHead(4, hidden_units=(8, 4), hidden_activation="gelu", activation=None),
    ClassificationHead(4, hidden_units=8, data_format="channels_last", trainable=False),
    RegressionHead(2, pooling="flatten", hidden_units=[3], activation="softplus"),
    RegressionHead(dtype="mixed_float16", pooling="max", features_key=None),
]


@pytest.mark.parametrize("head", HEADS, ids=range(len(HEADS)))
def test_config_round_trips_through_json(head):
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(head)))
    copy = keras.saving.deserialize_keras_object(config)
    assert type(copy) is type(head)
    assert copy.get_config() == head.get_config()


@pytest.mark.usually("0", "2")
@pytest.mark.parametrize("head", HEADS, ids=range(len(HEADS)))
def test_a_saved_model_predicts_as_before(head, tmp_path):
    inputs = keras.Input((4, 5, 6))
    model = keras.Model(inputs, type(head).from_config(head.get_config())(inputs))
    before = model.predict(IMAGES, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.predict(IMAGES, verbose=0), before)


def test_a_head_trains_in_fit_with_a_loss_given_by_name():
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((4, 5, 6)), ClassificationHead(2, dropout=0.1)])
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    before = model.get_weights()[0]
    history = model.fit(IMAGES, np.array([0, 1, 0]), epochs=3, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    assert not np.array_equal(model.get_weights()[0], before)


# --- Bad input ------------------------------------------------------------------------------


def test_softmax_over_one_class_is_refused_and_sigmoid_named():
    with pytest.raises(ValueError, match=r"always 1.*activation='sigmoid'"):
        ClassificationHead(1)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"num_classes": 0}, ValueError, "`num_classes` must be at least 1"),
        ({"num_classes": 2.0}, TypeError, "`num_classes` must be a whole number"),
        ({"dropout": 1.0}, ValueError, "`dropout` must be finite and at least 0 and below 1"),
        ({"pooling": "average"}, ValueError, "`pooling` must be one of .*Did you mean 'avg"),
        ({"hidden_units": "64"}, TypeError, "`hidden_units` must be a width or a sequence"),
        ({"hidden_units": [64, 0]}, ValueError, "`hidden_units` must be at least 1"),
        ({"data_format": "nchw"}, ValueError, "`data_format` must be one of"),
    ],
)
def test_bad_arguments_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        ClassificationHead(**{"num_classes": 3, **arguments})


@pytest.mark.parametrize(
    ("pooling", "shape", "message"),
    [
        ("avg", (None, 8), "pooled already"),
        ("avg_max", (None, 8), "pooled already"),
        ("last", (None, 4, 4, 8), "takes one step of a sequence.*rank 4"),
        ("first", (None, 8), "takes one step of a sequence.*rank 2"),
        ("flatten", (None, None, 8), "size is known.*None, None, 8"),
        ("auto", (None,), r"\(batch, \.\.\., channels\).*rank 1"),
        ("auto", (None, 4, 4, None), "how many channels"),
    ],
)
def test_pooling_that_does_not_fit_the_features_is_refused_at_build(pooling, shape, message):
    with pytest.raises(ValueError, match=message):
        ClassificationHead(3, pooling=pooling).build(shape)


def test_outputs_for_each_position_need_channels_last():
    with pytest.raises(ValueError, match="needs channels last"):
        ClassificationHead(3, pooling=None, data_format="channels_first").build((None, 8, 4, 4))
