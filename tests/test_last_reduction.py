import keras
import pytest

import keras_transfer as ktf
from keras_transfer._stock_model import stock_model_groups

SMALL_IMAGES = [
    ("DenseNet121", 32, {}),
    ("EfficientNetB0", 32, {}),
    ("EfficientNetV2B0", 32, {}),
    ("InceptionV3", 75, {}),
    ("MobileNet", 32, {"alpha": 0.25}),
    ("MobileNetV2", 32, {"alpha": 0.35}),
    ("MobileNetV3Small", 32, {}),
    ("NASNetMobile", 32, {}),
    ("ResNet50", 32, {}),
    ("ResNet50V2", 32, {}),
    ("VGG16", 32, {}),
    ("Xception", 71, {}),
]
USUAL_IMAGES = [
    ("DenseNet121", 224, {}),
    ("InceptionV3", 299, {}),
    ("MobileNetV3Small", 224, {}),
    ("ResNet50", 224, {}),
]


def inlined(name, size, options=None):
    base = getattr(keras.applications, name)(
        weights=None, include_top=False, input_shape=(size, size, 3), **(options or {})
    )
    x = keras.layers.GlobalAveragePooling2D()(base.output)
    return keras.Model(base.input, keras.layers.Dense(10, "softmax", name="new_head")(x))


SLOW_TO_BUILD = ("DenseNet121", "InceptionV3", "ResNet50", "Xception")


@pytest.mark.usually(
    "EfficientNetV2B0-32-options2",
    "MobileNet-32-options4",
    "VGG16-32-options10",
    "MobileNetV3Small-224-options14",
)
@pytest.mark.parametrize(
    ("name", "size", "options"),
    [
        pytest.param(*case, marks=pytest.mark.exhaustive if case[0] in SLOW_TO_BUILD else ())
        for case in SMALL_IMAGES + USUAL_IMAGES
    ],
)
def test_the_head_of_an_inlined_application_is_what_was_added_whatever_the_image_size(
    name, size, options
):
    # On small images the last maps are 1x1 long before the pooling.
    model = inlined(name, size, options)
    groups = stock_model_groups(model)
    assert groups.names[-1] == "new_head"
    dense = model.get_layer("new_head")
    assert {id(v) for v in groups[-1].variables} == {id(v) for v in dense.trainable_variables}


def test_a_chain_of_nested_models_before_one_pooling_is_one_backbone():
    groups = stock_model_groups(inlined("ConvNeXtTiny", 32))
    assert groups.names[-1] == "new_head"
    assert "last reduction" in groups.note


@pytest.mark.usually("32-MobileNet", "96-MobileNetV3Small")
@pytest.mark.parametrize("name", ["MobileNet", "MobileNetV3Small"])
@pytest.mark.parametrize("size", [32, 96])
def test_a_head_of_convolutions_starts_at_the_pooling_before_them(name, size):
    model = getattr(keras.applications, name)(weights=None, input_shape=(size, size, 3), classes=5)
    names = {"MobileNet": {"conv_preds"}, "MobileNetV3Small": {"conv_2", "logits"}}
    head = stock_model_groups(model)[-1]
    assert {layer.name for layer in head.layers if layer.weights} == names[name]


def test_a_pooling_over_the_whole_window_starts_a_head_of_convolutions():
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(4, 1, name="conv")(inputs)
    x = keras.layers.AveragePooling2D(8, name="pool")(x)
    x = keras.layers.Conv2D(2, 1, name="classes")(x)
    model = keras.Model(inputs, keras.layers.Flatten()(x))
    assert stock_model_groups(model).names == ["conv", "classes"]


def test_a_first_stage_that_trains_most_of_a_stock_model_is_warned_of():
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(4, 1, name="stem")(inputs)
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    x = keras.layers.Dense(64, name="wide")(x)
    model = keras.Model(inputs, keras.layers.Dense(2, name="classes")(x))
    plan = ktf.recipes.lp_ft()
    (warning,) = ktf.describe(model, plan).warnings
    assert warning == (
        "stage 'probe' trains 96.6 % of the parameters at depth=1. If the head starts too early, "
        "name its first layer: head='first_head_layer'."
    )
    assert ktf.describe(model, plan, head="wide").warnings == ()
