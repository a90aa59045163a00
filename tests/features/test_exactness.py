"""A cached training equals the uncached one bit for bit.

That needs the same examples in the same batches, so nothing is shuffled here but where it is
said: TensorFlow's kernels may round the last bit in another way at another place in the batch.

Each case has a control, a run whose features are perturbed, which has to differ, and looks at
the features themselves: on degenerate ones everything agrees.
"""

import keras
import numpy as np
import pytest

import keras_transfer as ktf
from keras_transfer.features import FeatureCache
from tests.features.toys import (
    HEAD_ONLY,
    LONG_PLAN,
    PLAN,
    assert_has_spread,
    assert_same,
    dense_backbone,
    dense_model,
    give_statistics,
    inputs,
    train,
)

KO = keras.optimizers
LABELS = np.random.default_rng(1).integers(0, 3, size=22)


def assert_exact(
    build, *given, agree=assert_same, other=None, features=None, shuffle=False, **arguments
):
    arguments["shuffle"] = shuffle
    cached = train(build, "auto", *given, **arguments)
    assert cached.decision.startswith("Feature cache on for stage 'probe'")
    agree(cached, train(build, False, *given, **arguments))
    losses = cached.history["loss"]
    assert np.isfinite(losses).all()
    assert np.ptp(losses) > 1e-3, "nothing was learnt"
    # The control. Its first stage is enough: the losses of later ones follow.
    cache = FeatureCache(dtype="bfloat16" if other is None else None)
    perturbed = train(other or build, cache, *given, **{**arguments, "plan": HEAD_ONLY})
    assert cache.nbytes > 0
    with pytest.raises(AssertionError, match="loss"):
        np.testing.assert_allclose(losses[:2], perturbed.history["loss"], 1e-5, err_msg="loss")
    if features is None:
        features = FeatureCache().features(cached.model, given[0], verbose=0)
    assert_has_spread(features)
    return cached


def assert_close(one, two):
    np.testing.assert_allclose(one.history["loss"], two.history["loss"], rtol=1e-5)
    np.testing.assert_allclose(one.history["val_loss"], two.history["val_loss"], rtol=1e-5)
    for a, b in zip(one.weights, two.weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def with_norm_and_dropout():
    """Groups of a Dense, a BatchNorm with statistics of its own, and dropout."""
    x = start = keras.Input((6,))
    for dense in dense_backbone(kernel_regularizer="l2").layers:
        x = keras.layers.BatchNormalization(name=f"{dense.name}_norm")(dense(x))
        x = keras.layers.Dropout(0.4, name=f"{dense.name}_dropout")(x)
    backbone = keras.Model(start, x, name="body")
    give_statistics(backbone, inputs()[0])
    return backbone


@pytest.mark.exhaustive
def test_with_averages_dropout_class_weights_penalties_and_a_validation_split():
    def build():
        head = ktf.layers.ClassificationHead(3, hidden_units=8, dropout=0.3, name="head")
        optimizer = KO.AdamW(1e-2, use_ema=True, ema_momentum=0.8)
        loss = "sparse_categorical_crossentropy"
        return dense_model(with_norm_and_dropout(), head, optimizer, loss, metrics=["accuracy"])

    run = assert_exact(
        build,
        inputs()[0],
        LABELS,
        plan=LONG_PLAN,
        validation_split=0.3,
        class_weight={0: 1.0, 1: 3.0, 2: 0.5},
    )
    assert run.passes == ["training", "validation"]
    assert "stage 'top'" in run.decision.split("; off")[0]


@pytest.mark.exhaustive
def test_with_sample_weights_several_metrics_and_several_steps_per_execution():
    def build():
        return dense_model(
            optimizer=KO.Adam(gradient_accumulation_steps=2),
            metrics=["mae"],
            weighted_metrics=["mse"],
            steps_per_execution=2,
        )

    x, y = inputs()
    weights = np.linspace(0.1, 2.0, 22)
    assert_exact(build, x, y, plan=PLAN, sample_weight=weights, validation_data=inputs(10, seed=3))


@pytest.mark.usually("mixed_float16")
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_in_mixed_precision(policy):
    def build(seed=0):
        keras.config.set_dtype_policy(policy)  # clearing the session has reset it
        head = ktf.layers.RegressionHead(2, name="head")
        return dense_model(dense_backbone(seed=seed), head, KO.Adam(1e-2))

    # Rounding to 16 bits would change nothing here, so the control has other weights.
    assert_exact(build, *inputs(), plan=PLAN, other=lambda: build(seed=1))


# --- Real backbones ---------------------------------------------------------------------------


def images(count=12):
    rng = np.random.default_rng(0)
    return rng.uniform(-1, 1, size=(count, 32, 32, 3)).astype("float32"), LABELS[:count]


def classifier(backbone):
    model = ktf.TransferModel(
        backbone, ktf.layers.ClassificationHead(3, dropout=0.2, name="head"), groups=4
    )
    model.compile(KO.SGD(1e-2, momentum=0.9), "sparse_categorical_crossentropy")
    return model


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("name", "options", "plan"),
    [("MobileNetV2", {"alpha": 0.35}, PLAN), ("ResNet50", {}, HEAD_ONLY)],
    ids=["MobileNetV2", "ResNet50"],
)
def test_on_an_application(name, options, plan):
    x, y = images()
    application = getattr(keras.applications, name)
    backbone = application(weights=None, include_top=False, input_shape=(32, 32, 3), **options)
    features = give_statistics(backbone, x)
    weights = backbone.get_weights()

    def build():
        backbone.set_weights(weights)
        return classifier(backbone)

    assert_exact(build, x, y, plan=plan, batch_size=5, features=features)


# --- Masks, several inputs --------------------------------------------------------------------


def sentences(count=22, steps=5):
    """Ids of words, zeros behind the end, and whether a step is a word."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, steps + 1, size=count)
    mask = np.arange(steps) < lengths[:, None]
    return (rng.integers(1, 20, size=(count, steps)) * mask).astype("int32"), mask


def embedding(seed=0, **options):
    start = keras.initializers.RandomNormal(stddev=1.0, seed=seed)
    return keras.layers.Embedding(20, 8, embeddings_initializer=start, name="embedding", **options)


def masked_lstm(seed=0):
    layers = [keras.Input((5,), dtype="int32"), embedding(seed, mask_zero=True)]
    layers.append(keras.layers.LSTM(6, return_sequences=True, name="lstm"))
    return keras.Sequential(layers, name="body")


def transformer():
    ids = keras.Input((5,), dtype="int32", name="ids")
    mask = keras.Input((5,), dtype="bool", name="mask")
    x = embedding()(ids)
    for name in ("low", "high"):
        attended = keras.layers.MultiHeadAttention(2, 4, dropout=0.2, name=f"{name}_attention")(
            x, x, attention_mask=mask[:, None, :]
        )
        x = keras.layers.LayerNormalization(name=f"{name}_norm")(x + attended)
        x = keras.layers.Dense(8, "gelu", name=f"{name}_dense")(x)
    return keras.Model({"ids": ids, "mask": mask}, x, name="body")


def sequence_model(backbone, optimizer, groups="blocks"):
    head = ktf.layers.ClassificationHead(3, name="head")
    model = ktf.TransferModel(backbone, head, groups=groups)
    model.compile(optimizer, "sparse_categorical_crossentropy")
    return model


def test_masks_of_an_embedding_travel_with_the_features():
    ids, _ = sentences()
    build, other = (lambda seed=n: sequence_model(masked_lstm(seed), "adam") for n in range(2))
    run = assert_exact(build, ids, LABELS, plan=PLAN, other=other)
    features = FeatureCache().features(run.model, ids, "embedding", verbose=0)
    np.testing.assert_array_equal(features["keras_transfer/features@1/mask"], ids != 0)


@pytest.mark.exhaustive
def test_inputs_that_are_read_again_later_travel_with_the_features():
    ids, mask = sentences()
    given = {"ids": ids, "mask": mask}
    groups = ["embedding", "low_attention", "high_attention"]
    run = assert_exact(
        lambda: sequence_model(transformer(), "adam", groups), given, LABELS, plan=PLAN
    )
    features = FeatureCache().features(run.model, given, 2, verbose=0)
    assert sorted(features) == ["keras_transfer/features@2", "keras_transfer/features@2/1"]
    np.testing.assert_array_equal(features["keras_transfer/features@2/1"], mask)


def test_shuffled_arrays_come_in_the_same_order_and_losses_agree():
    given = {"plan": PLAN, "shuffle": True, "validation_split": 0.3}
    assert_exact(dense_model, *inputs(), agree=assert_close, **given)
