"""Bad input ends in a clear error before any training: on a stock model and a `TransferModel`.

What plans refuse by themselves is in test_plan.py, groups in test_layer_groups.py, a backbone's
policy in layers/test_batch_norm.py, weights files in test_model.py, losses in layers/.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_transfer as ktf
from keras_transfer.callbacks import GradualUnfreezing
from keras_transfer.layers import ClassificationHead, PretrainedBackbone
from tests.callbacks import toys
from tests.test_model import unbuilt

MAKERS = pytest.mark.parametrize("make", [toys.stock, toys.transfer])


def plan_of(**stage):
    return ktf.UnfreezingPlan([ktf.Stage("s", **{"epochs": 1, **stage})])


class Untouched(keras.callbacks.Callback):
    """Fails if a single step is made."""

    def on_train_batch_begin(self, batch, logs=None):
        raise AssertionError("training began")


def refuse(model, message, callback, error=ValueError, **options):
    x, y = toys.data()
    before = model.get_weights()
    with pytest.raises(error, match=message):
        model.fit(x, y, verbose=0, callbacks=[callback, Untouched()], **options)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


# --- Plans that do not fit the model --------------------------------------------------------


@MAKERS
@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ({"train": "tpo"}, r"Stage 's': No layer group matches 'tpo'\. Did you mean 'top'\?"),
        ({"train": ["top", "t.*"]}, r"Stage 's': Patterns 'top' and 't\.\*' both match .* 'top'"),
        ({"train": ["t("]}, r"Stage 's': 't\(' is not a valid regular expression"),
        ({"depth": 5}, r"trains the top 5 layer groups, but the model has 4\. Lower `depth`"),
        ({"train": "norm"}, r"trains the scales and offsets .* has none, so the head alone would"),
    ],
)
def test_a_stage_that_does_not_fit_the_model_is_an_error_in_fit_and_dry_run(make, stage, message):
    model = toys.compiled(make())
    callback = toys.unfreezing(model, plan_of(**stage))
    refuse(model, message, callback)
    with pytest.raises(ValueError, match=message):
        ktf.describe(model, callback.plan, callback.groups)


def test_a_norm_stage_is_an_error_where_batch_norm_is_frozen_whatever_the_stage():
    layers = [keras.Input((6,)), keras.layers.Dense(4), keras.layers.BatchNormalization()]
    model = keras.Sequential([keras.Sequential(layers), keras.layers.Dense(3, "softmax")])
    toys.compiled(model)
    message = "batch_norm='freeze' keeps all that it has, so the head alone would train"
    refuse(model, message, GradualUnfreezing(plan_of(train="norm"), verbose=0))


@MAKERS
def test_epochs_beyond_the_plan_are_an_error(make):
    model = toys.compiled(make())
    message = r"epochs=4, but the plan ends after 3\. Pass epochs=plan\.total_epochs"
    refuse(model, message, toys.unfreezing(model), epochs=4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"groups": ["tpo"]}, r"No layer matches 'tpo'\. Did you mean 'top'\?"),
        ({"groups": ["top", "t.p"]}, r"Layer 'top' is matched twice, by 'top' and 't\.p'"),
        ({"groups": 9}, r"at most 3 layer groups\. Received: groups=9"),
        ({"head": "nwe"}, r"has no layer 'nwe'\. Did you mean 'new'\?"),
        ({"head": "stem"}, r"leaves no backbone before it"),
    ],
)
def test_wrong_groups_or_head_of_a_stock_model_are_an_error(arguments, message):
    callback = GradualUnfreezing(toys.PLAN, verbose=0, **arguments)
    refuse(toys.compiled(toys.stock()), message, callback)


@pytest.mark.parametrize("name", ["groups", "head"])
def test_groups_of_a_transfer_model_are_its_own(name):
    callback = GradualUnfreezing(toys.PLAN, verbose=0, **{name: "top"})
    refuse(toys.compiled(toys.transfer()), f"has its own layer groups; `{name}` is for", callback)


def test_a_plan_has_to_be_a_plan():
    stages = [ktf.Stage("probe", depth=1, epochs=1)]
    with pytest.raises(TypeError, match=r"must be an `UnfreezingPlan`.* Wrap stages"):
        GradualUnfreezing(stages)
    with pytest.raises(TypeError, match="must be an `UnfreezingPlan`"):
        ktf.describe(toys.transfer(), stages)


def test_two_plans_in_one_fit_are_an_error():
    model = toys.compiled(toys.transfer())
    two = [toys.unfreezing(model), toys.unfreezing(model)]
    refuse(model, "2 callbacks carry a plan .* Put all stages into one plan", two)


# --- Models -----------------------------------------------------------------------------------


def no_weights():
    return keras.Sequential([keras.Input((6,)), keras.layers.Flatten()])


def not_built():
    return keras.Sequential([keras.layers.Dense(3)], name="bare")


@pytest.mark.parametrize("use", [PretrainedBackbone, lambda m: ktf.TransferModel(m, toys.stock())])
@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (no_weights, ValueError, r"has no weights that could train\. A backbone needs layers with"),
        (not_built, ValueError, r"'bare' is not built, so .* Call it once on a batch, or give"),
        (lambda: 3, TypeError, r"must be a Keras model or layer\. Received: 3 of type int"),
    ],
)
def test_a_backbone_has_to_be_a_built_model_with_weights(use, model, error, message):
    with pytest.raises(error, match=message):
        use(model())


@pytest.mark.parametrize("head", [3, "dense", keras.layers.Dense, lambda x: x])
def test_a_head_has_to_be_a_layer(head):
    with pytest.raises(TypeError, match=r"`head` must be a Keras layer or model\. Received: head="):
        ktf.TransferModel(toys.backbone(), head)


def test_a_dry_run_of_a_model_that_is_not_built_says_so():
    model = unbuilt()
    with pytest.raises(ValueError, match=r"is not built yet.*Call the model once on a batch"):
        ktf.describe(model, plan_of(depth=1))


def test_an_unbuilt_stock_model_is_an_error():
    model = toys.compiled(toys.Subclassed())
    x, y = toys.data()
    with pytest.raises(ValueError, match=r"is not built, so it has no layers to freeze yet"):
        model.fit(x, y, verbose=0, callbacks=[toys.unfreezing(model), Untouched()])
    with pytest.raises(ValueError, match=r"is not built, so its layers have no weights yet"):
        ktf.describe(toys.Subclassed(), toys.PLAN)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (toys.stock, r"must call `compile\(\)`"),
        (toys.transfer, r"is not compiled\. Call `model\.compile"),
    ],
)
def test_an_uncompiled_model_is_an_error(make, message):
    model = make()
    refuse(model, message, toys.unfreezing(model))


def ending_in(*layers):
    return keras.Sequential([keras.Input((6,)), keras.layers.Dense(6, "relu", name="a"), *layers])


@pytest.mark.parametrize(
    ("layers", "what"),
    [
        ([keras.layers.Dense(7, "softmax", name="last")], "a softmax layer"),
        ([keras.layers.Dense(7, "sigmoid", name="last")], "a sigmoid layer"),
        ([keras.layers.Dense(7, name="b"), keras.layers.Softmax(name="last")], "a softmax layer"),
        ([ending_in(keras.layers.Dense(1000, name="last"))], "a layer of 1,000 outputs"),
        ([keras.layers.Dense(7, name="predictions")], "a layer of logits"),
    ],
)
def test_a_classifier_that_is_still_on_is_warned_of(layers, what):
    with pytest.warns(UserWarning, match=rf"ends in {what} \('.*'\): it looks as if"):
        ktf.TransferModel(ending_in(*layers), ClassificationHead(3))


def test_features_give_no_warning():
    for layer in (keras.layers.Dense(64), keras.layers.Dense(64, "relu"), keras.layers.ReLU()):
        ktf.TransferModel(ending_in(layer), ClassificationHead(3))


# --- Labels -----------------------------------------------------------------------------------

X, IDS = np.ones((6, 6), "float32"), np.arange(6) % 3
SPARSE, ONE_HOT, BINARY = (
    "sparse_categorical_crossentropy",
    "categorical_crossentropy",
    "binary_crossentropy",
)


def classifier(loss=SPARSE, head=None, **options):
    model = ktf.TransferModel(toys.backbone(), head or ClassificationHead(3), groups="blocks")
    model.compile("adam", loss, **options)
    return model


def data_set(labels):
    return tf.data.Dataset.from_tensor_slices((X, labels)).batch(3)


@pytest.mark.parametrize(
    ("loss", "labels", "message"),
    [
        (SPARSE, IDS + 1, r"num_classes=3, so class ids run from 0 to 2, but .* from 1 to 3"),
        (SPARSE, IDS - 1, r"num_classes=3, so class ids run from 0 to 2, but .* from -1 to 1"),
        (SPARSE, np.eye(3)[IDS], r"have shape \(6, 3\), as one-hot labels do"),
        (SPARSE, IDS + 0.5, r"must be class ids, and 0\.5 is no whole number"),
        (SPARSE, np.where(IDS, IDS, np.nan), r"hold 2 values that are not finite"),
        (
            SPARSE,
            np.array(list("abcabc")),
            r"must be numbers\. Received an array of <U1 .* \['a'\]",
        ),
        (keras.losses.SparseCategoricalCrossentropy(), IDS + 1, r"run from 1 to 3\. Raise"),
        (ONE_HOT, IDS, r"have shape \(6,\); .* takes one-hot labels of shape \(batch, 3\)"),
        (ONE_HOT, np.eye(4)[IDS], r"have shape \(6, 4\); .* takes one-hot labels"),
        (BINARY, IDS, r"takes a 0 or 1 for each, of shape \(batch, 3\)"),
    ],
)
def test_labels_that_do_not_fit_the_head_are_an_error(loss, labels, message):
    activation = "sigmoid" if loss == BINARY else "softmax"
    model = classifier(loss, ClassificationHead(3, activation=activation))
    with pytest.raises(ValueError, match=message):
        model.fit(X, labels, verbose=0, callbacks=[Untouched()])


def test_labels_that_are_no_yes_or_no_are_an_error():
    model = classifier(BINARY, ClassificationHead(1, activation="sigmoid"))
    with pytest.raises(ValueError, match=r"between 0 \(no\) and 1 \(yes\), but .* from 0 to 2"):
        model.fit(X, IDS, verbose=0, callbacks=[Untouched()])


def test_outputs_of_any_head_are_counted():
    model = classifier(SPARSE, keras.layers.Dense(3, "softmax"))
    with pytest.raises(ValueError, match="The model has 3 outputs, so class ids run from 0 to 2"):
        model.fit(X, IDS + 1, verbose=0, callbacks=[Untouched()])


def test_arrays_are_looked_at_wholly_and_data_sets_by_their_first_batch():
    late = np.array([0, 1, 2, 0, 1, 7])
    with pytest.raises(ValueError, match="the labels in `y` run from 0 to 7"):
        classifier().fit(X, late, verbose=0)
    message = r"in the first batch \(later batches are not looked at\) run from 7 to 7"
    with pytest.raises(ValueError, match=message):
        classifier().fit(data_set(np.full(6, 7)), verbose=0, shuffle=False)
    with pytest.raises(tf.errors.InvalidArgumentError, match="label value of 7"):
        classifier().fit(data_set(late), verbose=0, shuffle=False)


@pytest.mark.parametrize("as_data_set", [False, True])
def test_labels_of_validation_data_are_looked_at_too(as_data_set):
    bad = data_set(IDS + 1) if as_data_set else (X, IDS + 1)
    where = "in the first batch of `validation_data`" if as_data_set else "in `validation_data`"
    with pytest.raises(ValueError, match=f"{where} .*run from 1 to 3"):
        classifier().fit(X, IDS, validation_data=bad, verbose=0, callbacks=[Untouched()])


@pytest.mark.usually(
    "sparse_categorical_crossentropy-head0-labels0",
    "categorical_crossentropy-head3-labels3",
    "mse-head6-labels6",
)
@pytest.mark.parametrize(
    ("loss", "head", "labels"),
    [
        (SPARSE, ClassificationHead(3), IDS[:, None]),
        (SPARSE, ClassificationHead(3), IDS.astype("float32")),
        (keras.losses.SparseCategoricalCrossentropy(ignore_class=255), None, IDS - (IDS == 2)),
        (ONE_HOT, ClassificationHead(3), np.eye(3)[IDS]),
        (BINARY, ClassificationHead(3, activation="sigmoid"), np.eye(3)[IDS]),
        (BINARY, ClassificationHead(1, activation="sigmoid"), IDS % 2),
        ("mse", ktf.layers.RegressionHead(1), IDS + 0.5),
    ],
)
def test_labels_that_fit_are_let_pass(loss, head, labels):
    if getattr(loss, "ignore_class", None) is not None:
        labels = np.where(labels < 0, loss.ignore_class, labels)
    classifier(loss, head, run_eagerly=True).fit(X, labels, verbose=0)


def test_a_plan_among_the_callbacks_is_an_error_that_says_how_to_wrap_it():
    model = classifier()
    with pytest.raises(TypeError, match=r"Wrap it: .*GradualUnfreezing\(plan\)"):
        model.fit(np.ones((4, 6)), np.zeros(4), callbacks=[plan_of(depth=1)], verbose=0)


@pytest.mark.parametrize(("name", "offered"), [("lamb", None), ("adamv", "adam"), ("sdg", "sgd")])
def test_only_names_that_keras_takes_are_offered_for_an_optimizer(name, offered):
    with pytest.raises(ValueError, match=r"name of a Keras optimizer") as caught:
        classifier().compile(name, "sparse_categorical_crossentropy")
    said = str(caught.value).partition("Did you mean")[2]
    assert f"'{name}'" not in said
    wanted = f"'{offered}'" if offered else "pass keras.optimizers.Lamb(...)"
    assert wanted in str(caught.value)


def test_verbose_comes_third_and_head_by_name_only():
    assert ktf.callbacks.GradualUnfreezing(plan_of(depth=1), None, 0).verbose == 0
    with pytest.raises(TypeError, match=r"positional"):
        ktf.callbacks.GradualUnfreezing(plan_of(depth=1), None, 0, "head")


def test_steps_per_epoch_comes_fourth_in_a_dry_run():
    ktf.describe(classifier(), plan_of(depth=1), None, 5)


REGRESSION = ktf.layers.RegressionHead


@pytest.mark.parametrize("loss", ["mse", "mae", keras.losses.Huber(), ["mse"]])
@pytest.mark.parametrize(
    ("outputs", "shape"), [(1, (6, 5)), (1, (6, 6)), (2, (6, 1)), (3, (6,)), (3, (6, 2))]
)
def test_targets_of_another_width_than_the_head_are_an_error(loss, outputs, shape):
    model = classifier(loss, REGRESSION(outputs))
    with pytest.raises(ValueError, match=rf"num_outputs={outputs}, but the targets in `y`"):
        model.fit(X, np.ones(shape), verbose=0, callbacks=[Untouched()])


@pytest.mark.usually("1-shape0", "3-shape3")
@pytest.mark.parametrize(("outputs", "shape"), [(1, (6,)), (1, (6, 1)), (2, (6, 2)), (3, (6, 3))])
def test_targets_of_the_width_of_the_head_are_let_pass(outputs, shape):
    model = classifier("mse", REGRESSION(outputs), run_eagerly=True)
    model.fit(X, np.ones(shape), verbose=0)


def test_targets_for_each_position_of_a_sequence_are_let_pass():
    body = keras.Sequential([keras.Input((5, 6)), keras.layers.Dense(4, name="stem")])
    model = ktf.TransferModel(body, REGRESSION(1, pooling=None))
    model.compile("adam", "mse")
    for shape in [(6, 5, 1)]:
        model.fit(np.ones((6, 5, 6)), np.ones(shape), verbose=0)


def test_class_ids_under_a_loss_for_quantities_are_an_error():
    model = classifier("mse", ClassificationHead(3))
    with pytest.raises(ValueError, match="use loss='sparse_categorical_crossentropy'"):
        model.fit(X, IDS, verbose=0, callbacks=[Untouched()])
    model.fit(X, np.eye(3)[IDS], verbose=0)


@pytest.mark.parametrize("as_dict", [False, True])
def test_a_loss_in_a_list_or_dict_of_one_is_looked_at_too(as_dict):
    loss = {"head": SPARSE} if as_dict else [SPARSE]
    labels = {"head": IDS + 1} if as_dict else [IDS + 1]
    for y in (IDS + 1, labels):
        with pytest.raises(ValueError, match="class ids run from 0 to 2"):
            classifier(loss).fit(X, y, verbose=0, callbacks=[Untouched()])


@MAKERS
def test_an_exemption_from_weight_decay_that_matches_nothing_is_refused(make):
    plan = ktf.UnfreezingPlan([ktf.Stage("s", depth=1, epochs=1)], no_decay_on=["norms"])
    message = (
        r"No variable's path matches 'norms' in `no_decay_on` as a whole\. Did you mean 'norm'"
    )
    refuse(toys.compiled(make()), message, GradualUnfreezing(plan, verbose=0))
