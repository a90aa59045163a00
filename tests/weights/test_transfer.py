import keras
import numpy as np
import pytest

from keras_transfer.weights import TransferReport, named_weights, transfer_weights
from tests.weights import models


def by_path(model):
    return {weight.path: weight.variable.numpy() for weight in named_weights(model)}


def test_equal_models_copy_every_weight_and_the_report_says_all():
    source = models.randomize(models.classifier(5))
    target = models.randomize(models.classifier(5), seed=1)
    report = transfer_weights(source, target)
    assert models.equal(target, source.get_weights()) == [True] * 10
    assert report.copied_share == 1.0
    assert {weight.status for weight in report.weights} == {"copied"}
    assert report.unused == ()
    assert report.source == "model 'classifier'"


def test_a_new_head_is_an_error_by_default_and_nothing_is_copied():
    source, target = models.randomize(models.classifier(5)), models.classifier(2)
    before = models.values(target)
    with pytest.raises(
        ValueError,
        match=r"(?s)2 of the target's 10 weights.*head/kernel: shape \(6, 5\) in the source, "
        r"\(6, 2\) in the target.*on_mismatch='skip'",
    ):
        transfer_weights(source, target)
    assert all(models.equal(target, before))


def test_skip_leaves_the_head_and_says_why():
    source, target = models.randomize(models.classifier(5)), models.classifier(2)
    before = by_path(target)
    report = transfer_weights(source, target, on_mismatch="skip")
    skipped = report.with_status("skipped")
    assert [weight.path for weight in skipped] == ["head/kernel", "head/bias"]
    after, wanted = by_path(target), by_path(source)
    for path, value in after.items():
        kept = path.startswith("head")
        np.testing.assert_array_equal(value, before[path] if kept else wanted[path])
    assert report.copied_parameters == sum(v.size for p, v in after.items() if "head" not in p)
    assert report.copied_share == pytest.approx(report.copied_parameters / target.count_params())


@pytest.mark.parametrize("direction", ["out", "in"])
def test_a_backbone_is_found_inside_a_larger_model_and_the_other_way(direction):
    inside, alone = models.classifier(5), models.backbone()
    source, target = (inside, alone) if direction == "out" else (alone, inside)
    models.randomize(source)
    report = transfer_weights(source, target, on_mismatch="skip")
    body = target if direction == "out" else target.get_layer("backbone")
    other = source.get_layer("backbone") if direction == "out" else source
    for one, two in zip(body.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)
    assert report.with_status("copied")[0].reason == "path ends alike"


def test_two_candidates_are_an_error_and_are_named():
    inputs = keras.Input((8, 8, 3))
    twins = [models.backbone(name=name) for name in ("left", "right")]
    source = keras.Model(inputs, [twin(inputs) for twin in twins])
    with pytest.raises(
        ValueError, match=r"not clear which of the source's: 'left/stem/kernel' and 'right/stem"
    ):
        transfer_weights(source, models.backbone())
    # A mapping makes it clear.
    target = models.backbone()
    transfer_weights(models.randomize(source), target, {"(.*)": r"right/\1"})
    assert all(models.equal(target, twins[1].get_weights()))


def test_a_mapping_takes_weights_layers_and_patterns_and_keeps_the_rest():
    source = models.randomize(models.classifier(5))
    target = models.classifier(5, nested=False)
    before = by_path(target)
    report = transfer_weights(
        source,
        target,
        {
            "stem": "backbone/stem",
            r"stem_norm/(gamma|beta)": r"backbone/stem_norm/\1",
            "features/kernel": "backbone/features/kernel",
        },
    )
    after, wanted = by_path(target), by_path(source)
    copied = {w.path: w.source_path for w in report.with_status("copied")}
    assert set(copied) == {
        "stem/kernel",
        "stem/bias",
        "stem_norm/gamma",
        "stem_norm/beta",
        "features/kernel",
    }
    for path, value in after.items():
        expected = wanted[copied[path]] if path in copied else before[path]
        np.testing.assert_array_equal(value, expected)
    assert {w.reason for w in report.with_status("kept")} == {"not named in `mapping`"}


def test_a_mapping_to_the_top_unwraps_a_layer():
    source, target = models.randomize(models.backbone()), models.classifier(5)
    transfer_weights(source, target, {"backbone": ""})
    assert all(models.equal(target.get_layer("backbone"), source.get_weights()))


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"stemm/kernel": "stem/kernel"}, r"names 'stemm/kernel'.*Did you mean 'stem/kernel'"),
        ({"stem": "stemm"}, r"sends 'stem' to 'stemm/kernel'.*Did you mean 'stem/kernel'"),
        ({"stem": "stem", ".*/kernel": "stem/kernel"}, r"names the target's 'stem/kernel' twice"),
        ({"(": "stem"}, r"not a regular expression. Received: '\('"),
        ({"stem/.*": r"\3"}, r"value that does not fit its pattern"),
    ],
)
def test_a_wrong_mapping_is_named_and_nothing_is_copied(mapping, message):
    source, target = models.randomize(models.backbone()), models.backbone()
    before = models.values(target)
    with pytest.raises(ValueError, match=message):
        transfer_weights(source, target, mapping, on_mismatch="skip")
    assert all(models.equal(target, before))


def test_mappings_of_the_wrong_type_are_refused():
    with pytest.raises(TypeError, match="`mapping` must be a dictionary"):
        transfer_weights(models.backbone(), models.backbone(), ["stem"])
    with pytest.raises(TypeError, match="`mapping` must map strings to strings"):
        transfer_weights(models.backbone(), models.backbone(), {"stem": None})


def test_models_with_nothing_in_common_raise_even_where_mismatches_are_skipped():
    source = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="other")])
    with pytest.raises(ValueError, match=r"Nothing in model .* fits the target"):
        transfer_weights(source, models.backbone(), on_mismatch="skip")


def test_automatic_names_of_one_architecture_point_to_set_weights():
    def build():
        return keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), keras.layers.Dense(2)])

    with pytest.raises(ValueError, match=r"target.set_weights\(source.get_weights\(\)\)"):
        transfer_weights(build(), build())


def test_missing_names_come_with_near_matches():
    source = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="dense_a")])
    target = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(3, name="dense_b"), keras.layers.Dense(2, name="a")]
    )
    with pytest.raises(
        ValueError, match=r"dense_b/kernel: not in the source. Did you mean 'dense_a"
    ):
        transfer_weights(source, target)


@pytest.mark.parametrize(("how", "channels"), [("sum", 1), ("mean", 1), ("sum", 5), ("mean", 5)])
def test_the_first_convolution_takes_another_number_of_channels(how, channels):
    source = models.randomize(models.backbone(3))
    target = models.randomize(models.backbone(channels), seed=1)
    report = transfer_weights(source, target, first_conv=how)
    old, new = source.get_weights()[0], target.get_weights()[0]
    share = old.sum(axis=2) / channels if how == "sum" else old.mean(axis=2)
    for channel in range(channels):
        np.testing.assert_allclose(new[:, :, channel], share, rtol=1e-6)
    assert report.with_status("partial")[0].reason == f"3 to {channels} channels by {how}"
    assert report.copied_share == 1.0
    for one, two in zip(target.get_weights()[1:], source.get_weights()[1:], strict=True):
        np.testing.assert_array_equal(one, two)


def test_summed_channels_give_a_grey_image_what_its_rgb_copy_gave():
    source, target = models.randomize(models.backbone(3)), models.backbone(1)
    transfer_weights(source, target, first_conv="sum")
    grey = np.random.default_rng(0).random((2, 8, 8, 1)).astype("float32")
    rgb = np.repeat(grey, 3, axis=-1)
    np.testing.assert_allclose(
        target.predict(grey, verbose=0), source.predict(rgb, verbose=0), rtol=1e-5
    )


def test_without_first_conv_other_channels_are_a_mismatch():
    with pytest.raises(ValueError, match=r"stem/kernel: shape \(3, 3, 3, 4\) in the source"):
        transfer_weights(models.backbone(3), models.backbone(1))


def test_changes_of_shape_with_a_standard_meaning_are_offered_by_name():
    def said(source, target):
        with pytest.raises(ValueError, match="on_mismatch='skip'") as caught:
            transfer_weights(source, target)
        return str(caught.value)

    both = said(models.classifier(5, 3), models.classifier(2, 1))
    assert "`first_conv='sum'` or `first_conv='mean'`" in both
    assert "`class_names=([the source's], [the target's])`" in both
    assert "class_names" not in said(models.classifier(5, 3), models.classifier(5, 1))
    assert "first_conv" not in said(models.classifier(5, 3), models.classifier(2, 3))
    # Another number of filters, and of a layer before the last, has no such meaning.
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(7, 3, name="stem")(inputs))
    wider = keras.Model(inputs, keras.layers.Dense(6, name="features")(x))
    text = said(models.backbone(), wider)
    assert "stem/kernel: shape" in text
    assert "first_conv" not in text
    assert "class_names" not in text


def test_first_conv_without_a_convolution_and_unknown_choices_are_refused():
    dense = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="a")])
    with pytest.raises(ValueError, match="`first_conv` is for a target with a `Conv1D`"):
        transfer_weights(dense, dense, first_conv="sum")
    with pytest.raises(ValueError, match=r"first_conv='average'"):
        transfer_weights(dense, dense, first_conv="average")
    with pytest.raises(ValueError, match=r"on_mismatch='skipp'. Did you mean 'skip'"):
        transfer_weights(dense, dense, on_mismatch="skipp")


OLD = ["bear", "bird", "cat", "cow", "dog"]


@pytest.mark.parametrize("new", [["dog", "yak", "bird"], ["dog", "cow", "yak", "bird", "bear"]])
def test_classes_are_copied_by_name_and_new_ones_keep_their_own(new):
    source = models.randomize(models.classifier(5))
    target = models.randomize(models.classifier(len(new)), seed=1)
    before, wanted = by_path(target), by_path(source)
    report = transfer_weights(source, target, class_names=(OLD, new))
    after = by_path(target)
    for index, name in enumerate(new):
        origin, column = (wanted, OLD.index(name)) if name in OLD else (before, index)
        for path in ("head/kernel", "head/bias"):
            np.testing.assert_array_equal(after[path][..., index], origin[path][..., column])
    shared = len(set(new) & set(OLD))
    kernel, bias = report.with_status("partial")
    assert kernel.reason == f"{shared} of {len(new)} classes by name"
    assert (kernel.copied_parameters, bias.copied_parameters) == (6 * shared, shared)


@pytest.mark.parametrize(
    ("names", "error", "message"),
    [
        ((OLD, ["dug", "yak"]), ValueError, "class in common.*Did you mean 'dog'"),
        ((OLD, ["dog", "dog"]), ValueError, "twice for the target: 'dog'"),
        ((OLD[:4], ["dog", "cow"]), ValueError, "4 names for the source and 2 for the target"),
        (OLD, TypeError, "must be a pair"),
    ],
)
def test_wrong_class_names_are_refused(names, error, message):
    names = (names[0], names[1]) if isinstance(names, tuple) else names
    with pytest.raises(error, match=message):
        transfer_weights(models.classifier(5), models.classifier(2), class_names=names)


def test_nan_in_the_source_is_refused_and_nothing_is_copied():
    source, target = models.randomize(models.backbone()), models.backbone()
    source.get_layer("features").bias.assign(np.full(6, np.nan))
    before = models.values(target)
    with pytest.raises(ValueError, match=r"'features/bias' holds NaN.*earlier checkpoint"):
        transfer_weights(source, target)
    assert all(models.equal(target, before))


def test_values_too_large_for_the_target_are_refused():
    source = models.randomize(models.backbone())
    source.get_layer("features").bias.assign(np.full(6, 1e6))
    keras.config.set_dtype_policy("float16")
    target = models.backbone()
    with pytest.raises(ValueError, match=r"'features/bias' holds 1e\+06, .*float16.*mixed_float16"):
        transfer_weights(source, target)
    assert all(np.isfinite(array).all() for array in target.get_weights())


def test_double_precision_values_need_a_target_as_wide():
    def build(dtype):
        return keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, name="a", dtype=dtype)])

    source, target = build("float64"), build("float64")
    source.set_weights([np.full((2, 1), 1e300), np.zeros(1)])
    transfer_weights(source, target)
    assert target.get_weights()[0].tolist() == [[1e300], [1e300]]
    with pytest.raises(ValueError, match=r"holds 1e\+300, .*target's float32.*in float64"):
        transfer_weights(source, build("float32"))


def test_an_unbuilt_target_or_source_is_refused_with_the_remedy():
    unbuilt = keras.Sequential([keras.layers.Dense(2)], name="later")
    with pytest.raises(ValueError, match=r"`target` has no weights yet. Received: 'later'. Build"):
        transfer_weights(models.backbone(), unbuilt)
    with pytest.raises(ValueError, match=r"`source` holds no weights. Received: model 'later'"):
        transfer_weights(unbuilt, models.backbone())
    with pytest.raises(TypeError, match="`target` must be a Keras model"):
        transfer_weights(models.backbone(), "model.keras")


def test_composite_and_subclassed_layers_have_paths():
    inputs = keras.Input((5, 8))
    attention = keras.layers.MultiHeadAttention(2, 4, name="attention")(inputs, inputs)
    model = keras.Model(inputs, keras.layers.LSTM(3, name="memory")(attention))
    paths = [weight.path for weight in named_weights(model)]
    assert paths[:2] == ["attention/query/kernel", "attention/query/bias"]
    assert paths[-3].startswith("memory/")
    assert len(paths) == len(set(paths)) == len(model.weights)


def test_half_precision_targets_get_the_values_in_their_dtype():
    source = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="a")])
    target = keras.Sequential(
        [keras.Input((3,)), keras.layers.Dense(2, name="a", dtype="bfloat16")]
    )
    transfer_weights(source, target)
    np.testing.assert_allclose(
        target.get_weights()[0].astype(float), source.get_weights()[0], rtol=1e-2
    )


def test_trainable_flags_do_not_matter_and_do_not_change():
    source, target = models.randomize(models.classifier(5)), models.classifier(5)
    target.get_layer("backbone").trainable = False
    transfer_weights(source, target)
    assert not target.get_layer("backbone").trainable
    wanted = by_path(source)
    for path, value in by_path(target).items():
        np.testing.assert_array_equal(value, wanted[path])


def test_the_report_prints_what_was_not_copied_and_survives_json():
    report = transfer_weights(models.classifier(5), models.classifier(2), on_mismatch="skip")
    text = str(report)
    assert "copied 8, partial 0, skipped 2, kept 0; 0 weights of the source unused." in text
    assert "stem/kernel" not in text
    assert "backbone/stem/kernel" in report.table(every=True)
    assert TransferReport.from_json(report.to_json()) == report
    with pytest.raises(ValueError, match="The report is not valid JSON"):
        TransferReport.from_json("{")
    with pytest.raises(ValueError, match="must hold `weights`"):
        TransferReport.from_config({"source": "x"})
    with pytest.raises(ValueError, match="Did you mean 'skipped'"):
        report.with_status("skiped")
