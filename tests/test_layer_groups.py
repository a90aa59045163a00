import keras
import numpy as np
import pytest

from keras_transfer import backbone_groups
from keras_transfer._functional_graph import FunctionalGraph
from keras_transfer._stock_model import stock_model_groups

APPLICATIONS = [
    "DenseNet121",
    "EfficientNetB0",
    "EfficientNetV2B0",
    "InceptionV3",
    "MobileNet",
    "MobileNetV2",
    "MobileNetV3Small",
    "ResNet50",
    "ResNet50V2",
    "VGG16",
    "Xception",
]


def transformer():
    ids = keras.Input((5,), dtype="int32", name="ids")
    mask = keras.Input((5,), dtype="bool", name="mask")
    x = keras.layers.Embedding(20, 8, name="embedding")(ids)
    for i in range(3):
        attended = keras.layers.MultiHeadAttention(2, 4, name=f"attention_{i}")(
            x, x, attention_mask=mask[:, None, :]
        )
        x = keras.layers.LayerNormalization(name=f"norm_{i}")(x + attended)
        x = keras.layers.Dense(8, "gelu", name=f"dense_{i}")(x)
    return keras.Model({"ids": ids, "mask": mask}, x)


def masked_lstm():
    return keras.Sequential(
        [
            keras.Input((5,), dtype="int32"),
            keras.layers.Embedding(20, 8, mask_zero=True, name="embedding"),
            keras.layers.LSTM(6, return_sequences=True, name="lstm_1"),
            keras.layers.LSTM(6, return_sequences=True, name="lstm_2"),
        ]
    )


def dense():
    return keras.Sequential(
        [keras.Input((4,)), *(keras.layers.Dense(4, name=n) for n in ("stem", "mid", "top"))]
    )


@pytest.mark.usually("MobileNetV2", "ResNet50V2")
@pytest.mark.parametrize("name", APPLICATIONS)
def test_every_weight_of_an_application_is_in_one_group(name):
    model = getattr(keras.applications, name)(
        weights=None, include_top=False, input_shape=(96, 96, 3)
    )
    groups = backbone_groups(model)
    assert 3 <= len(groups) <= 8
    grouped = [id(v) for group in groups for v in group.variables]
    assert sorted(grouped) == sorted(id(v) for v in model.trainable_variables)
    assert all(group.boundary is not None for group in groups)


def test_boundaries_of_a_residual_network_never_lie_inside_a_block():
    model = keras.applications.ResNet50(weights=None, include_top=False, input_shape=(64, 64, 3))
    graph = FunctionalGraph(model)
    assert len(graph.boundaries) == 37
    for boundary in graph.boundaries:
        before = {key for node in graph.nodes[: boundary.index] for key in node.writes}
        read_later = {key for node in graph.nodes[boundary.index :] for key in node.reads}
        assert before & read_later <= {boundary.key}


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (masked_lstm, ["embedding", "lstm_1", "lstm_2"]),
        (dense, ["stem", "mid", "top"]),
    ],
)
def test_blocks_of_a_chain_are_its_layers(make, names):
    assert backbone_groups(make(), "blocks").names == names


def test_a_padding_mask_does_not_count_against_a_boundary():
    groups = backbone_groups(transformer(), "blocks")
    assert groups.names[0] == "embedding"
    assert len(groups) >= 4
    assert all(group.boundary is not None for group in groups)


def test_a_number_a_list_and_a_callable_say_how_to_group():
    assert backbone_groups(dense(), 2).names == ["stem", "mid"]
    assert backbone_groups(dense(), ["top"]).names == ["stem", "top"]
    assert backbone_groups(dense(), ["mid|top"]).names == ["stem", "mid"]
    by_name = backbone_groups(dense(), lambda layer: "low" if layer.name == "stem" else "high")
    assert by_name.names == ["low", "high"]


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (["tpo"], "No layer matches 'tpo'. Did you mean 'top'"),
        (["top", "t.*"], "matched twice"),
        (9, "at most 3 layer groups"),
        ("atuo", "Did you mean 'auto'"),
    ],
)
def test_a_wrong_grouping_is_an_error(groups, message):
    with pytest.raises(ValueError, match=message):
        backbone_groups(dense(), groups)


def test_an_unbuilt_model_is_an_error():
    with pytest.raises(ValueError, match="is not built"):
        backbone_groups(keras.Sequential([keras.layers.Dense(2)]))


def test_the_head_of_an_inlined_model_starts_at_the_last_pooling():
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(4, 3, name="conv_1")(inputs)
    x = keras.layers.Conv2D(4, 3, name="conv_2")(x)
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    model = keras.Model(inputs, keras.layers.Dense(2, name="classes")(x))
    groups = stock_model_groups(model, "blocks")
    assert groups.names == ["conv_1", "conv_2", "classes"]
    assert "from 'pool' on" in groups.note


def test_a_model_without_a_reduction_asks_for_its_head():
    model = dense()
    with pytest.raises(ValueError, match="Name the first layer of the head"):
        stock_model_groups(model)
    assert stock_model_groups(model, "blocks", head="top").names == ["stem", "mid", "top"]


def pooled(x, name="classes"):
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.layers.Dense(2, name=name)(x)


@pytest.mark.usually("MobileNetV2")
@pytest.mark.parametrize("name", ["MobileNetV2", "MobileNetV3Small", "EfficientNetB0"])
def test_the_head_of_an_inlined_application_starts_at_its_own_pooling(name):
    # MobileNetV3 and EfficientNet pool inside each block as well.
    inputs = keras.Input((64, 64, 3))
    backbone = getattr(keras.applications, name)(
        weights=None, include_top=False, input_tensor=inputs
    )
    groups = stock_model_groups(keras.Model(inputs, pooled(backbone.output)))
    assert groups.names[-1] == "classes"
    grouped = [id(v) for group in groups[:-1] for v in group.variables]
    assert sorted(grouped) == sorted(id(v) for v in backbone.trainable_variables)


def test_the_head_of_a_recurrent_model_starts_after_its_last_step():
    model = keras.Sequential(
        [
            *masked_lstm().layers,
            keras.layers.LSTM(4, name="last_step"),
            keras.layers.Dense(2, name="classes"),
        ]
    )
    model.build((None, 5))
    groups = stock_model_groups(model, "blocks")
    assert groups.names == ["embedding", "lstm_1", "lstm_2", "last_step", "classes"]


def two_backbones():
    inputs = keras.Input((8, 8, 3))
    parts = [
        keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(2, 3)], name=name)
        for name in ("left", "right")
    ]
    return keras.Model(inputs, pooled(keras.layers.Add()([part(inputs) for part in parts])))


def test_of_two_nested_models_neither_is_taken_for_the_backbone():
    model = two_backbones()
    with pytest.raises(
        ValueError, match=r"2 nested models \('left', 'right'\), so it is not clear"
    ):
        stock_model_groups(model)
    groups = stock_model_groups(model, 1, head="pool")
    assert [len(group.variables) for group in groups] == [4, 2]


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.first = keras.layers.Dense(4, name="first")
        self.norm = keras.layers.LayerNormalization(name="norm")
        self.second = keras.layers.Dense(4, name="second")
        self(np.ones((1, 4), "float32"))

    def call(self, x):
        return self.second(self.norm(self.first(x)))


def test_a_subclassed_model_falls_back_to_its_layers_and_cannot_be_cached():
    groups = backbone_groups(Subclassed(), "blocks")
    assert groups.names == ["first", "second"]
    assert [len(group.variables) for group in groups] == [4, 2]
    assert all(group.boundary is None for group in groups)
    assert str(groups).splitlines()[-1].split() == ["second", "1", "20", "?", "no"]


def test_the_head_of_a_subclassed_model_is_asked_for_unless_it_is_called_head():
    model = Subclassed()
    with pytest.raises(ValueError, match=r"subclassed model with 0 nested models.*Name the first"):
        stock_model_groups(model)
    assert stock_model_groups(model, head="second").names == ["first", "second"]
    model.head = model.second
    assert stock_model_groups(model).names == ["first", "second"]


def test_the_table_shows_groups_and_parameters():
    text = str(backbone_groups(dense(), "blocks"))
    assert text.splitlines()[0].split()[:3] == ["group", "layers", "parameters"]
    assert "20" in text
    assert np.all(["stem" in text, "mid" in text, "top" in text])


class HeadFirst(keras.Model):
    """Creates its head before its backbone, and calls it after."""

    def __init__(self, attribute, *, nested=True, head=None):
        super().__init__()
        setattr(self, attribute, head or keras.layers.Dense(2, name="classes"))
        self.features = dense() if nested else keras.layers.Dense(4, name="features")
        self.attribute = attribute
        self(np.ones((1, 4), "float32"))

    def call(self, x):
        return getattr(self, self.attribute)(self.features(x))


def test_a_head_that_was_created_before_its_backbone_follows_it_all_the_same():
    deep = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)], name="classes")
    for model in (HeadFirst("head"), HeadFirst("classifier"), HeadFirst("head", head=deep)):
        head = None if model.attribute == "head" else "classes"
        groups = stock_model_groups(model, "blocks", head=head)
        assert groups.names == ["stem", "mid", "top", "classes"]
        assert groups[-1].layers == (getattr(model, model.attribute),)


@pytest.mark.parametrize(
    ("model", "lacks"),
    [
        (lambda: HeadFirst("classifier"), "weights in the head"),
        (lambda: HeadFirst("head", nested=False), "backbone before it"),
    ],
)
def test_where_the_order_of_creation_hides_the_head_the_error_says_so(model, lacks):
    message = rf"leaves no {lacks}\. The layers .* in the order in which they were created: classes"
    with pytest.raises(ValueError, match=message):
        stock_model_groups(model())


def test_a_head_and_a_backbone_group_of_one_name_get_names_of_their_own():
    body = keras.Sequential(
        [keras.Input((4,)), *(keras.layers.Dense(4, name=n) for n in ("stem", "head"))]
    )
    model = keras.Sequential([body, keras.layers.Dense(2, name="head")])
    assert stock_model_groups(model, "blocks").names == ["stem", "head", "head_1"]


def normalized():
    layers = [
        keras.layers.Dense(4, name="dense"),
        keras.layers.BatchNormalization(name="norm"),
        keras.layers.Dense(4, name="top"),
    ]
    return keras.Sequential([keras.Input((4,)), *layers])


def test_a_normalization_that_a_callable_separates_is_named_as_the_reason():
    message = (
        "'dense' into 'dense', 'norm' into 'norm'. A normalization stays with the layer before it: "
        "return 'dense' for both"
    )
    with pytest.raises(ValueError, match=message):
        backbone_groups(normalized(), lambda layer: layer.name)
    with pytest.raises(ValueError, match="More than one tensor runs through them, or they share"):
        backbone_groups(residual(), lambda layer: layer.name)


def residual():
    inputs = keras.Input((4,))
    x = keras.layers.Dense(4, name="low")(inputs)
    y = keras.layers.Dense(4, name="first")(x)
    y = keras.layers.Dense(4, name="second")(y)
    return keras.Model(inputs, keras.layers.Add(name="sum")([x, y]))


@pytest.mark.parametrize(
    ("make", "name", "message"),
    [
        (normalized, "norm", "'norm': a normalization stays with the layer before it. Start"),
        (residual, "second", "'second': it lies inside a block that more than one tensor runs"),
        (residual, "sum", "'sum': a layer without weights stays with the layer before it"),
    ],
)
def test_a_group_that_cannot_start_where_it_should_says_why(make, name, message):
    with pytest.raises(ValueError, match=message):
        backbone_groups(make(), [name])


def test_an_empty_list_of_first_layers_and_what_is_no_name_are_refused():
    with pytest.raises(ValueError, match="`groups` is empty"):
        backbone_groups(dense(), [])
    with pytest.raises(TypeError, match=r"`groups` must hold names of layers\. Received: 3"):
        backbone_groups(dense(), [3])
