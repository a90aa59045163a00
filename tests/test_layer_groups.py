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


def test_the_table_shows_groups_and_parameters():
    text = str(backbone_groups(dense(), "blocks"))
    assert text.splitlines()[0].split()[:3] == ["group", "layers", "parameters"]
    assert "20" in text
    assert np.all(["stem" in text, "mid" in text, "top" in text])
