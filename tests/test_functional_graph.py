"""Boundaries of random graphs: just the articulation points, and each can be started from."""

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_transfer._functional_graph import FunctionalGraph

WIDTH = 2
KINDS = ("dense", "relu", "add", "multiply", "again", "slice")
# What each node does, and which of the tensors made so far it reads (counted from the last).
steps = st.lists(
    st.tuples(st.sampled_from(KINDS), st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=9
)


def random_model(steps, two_inputs, two_outputs):
    """A functional model of small layers, operations without weights, and shared layers."""
    inputs = [keras.Input((WIDTH,), name=f"input_{i}") for i in range(1 + two_inputs)]
    tensors, dense = list(inputs), []
    for number, (kind, first, second) in enumerate(steps):
        a, b = tensors[-1 - first % len(tensors)], tensors[-1 - second % len(tensors)]
        if kind == "again" and dense:
            layer = dense[first % len(dense)]
        elif kind in ("dense", "again"):
            layer = keras.layers.Dense(WIDTH, "tanh", name=f"dense_{number}")
            dense.append(layer)
        else:
            layer = None
        if layer is not None:
            tensors.append(layer(a))
        elif kind == "relu":
            tensors.append(keras.layers.ReLU(name=f"relu_{number}")(a))
        elif kind == "slice":
            tensors.append(keras.ops.flip(a, axis=1))
        else:
            make = keras.layers.Add if kind == "add" else keras.layers.Multiply
            tensors.append(make(name=f"{kind}_{number}")([a, b]))
    outputs = tensors[-2:] if two_outputs and len(tensors) > len(inputs) + 1 else tensors[-1]
    return keras.Model(inputs, outputs)


def boundaries_by_brute_force(graph):
    """Cuts the list of nodes everywhere and looks at what crosses the cut."""
    writer = {key: node for node in graph.nodes for key in node.writes}

    def follows_from_weights(key):
        node = writer.get(key)
        if node is None:  # an input
            return False
        has_weights = node.layer is not None and bool(node.layer.variables)
        return has_weights or any(follows_from_weights(k) for k in node.reads)

    found = {}
    for cut in range(1, len(graph.nodes) + 1):
        before, after = graph.nodes[:cut], graph.nodes[cut:]
        wanted = {key for node in after for key in node.reads} | set(graph.outputs)
        made = {key for node in before for key in node.writes} & wanted
        crossing = {key for key in made if follows_from_weights(key)}
        layers = [{id(n.layer) for n in part if n.layer is not None} for part in (before, after)]
        shares_weights = any(
            node.layer.variables for node in before if node.layer and id(node.layer) in layers[1]
        )
        if len(crossing) == 1 and not shares_weights:
            found[cut] = crossing.pop()
    return found


def inputs_of(model):
    generator = np.random.default_rng(0)
    return [generator.normal(size=(3, WIDTH)).astype("float32") for _ in model.inputs]


def call(operation, args, kwargs):
    return operation(*args, **kwargs)


@settings(max_examples=60)
@given(steps, st.booleans(), st.booleans())
def test_boundaries_are_the_articulation_points_and_a_run_from_each_equals_the_whole(
    steps, two_inputs, two_outputs
):
    model = random_model(steps, two_inputs, two_outputs)
    graph = FunctionalGraph(model)
    assert {b.index: b.key for b in graph.boundaries} == boundaries_by_brute_force(graph)

    given_inputs = [keras.ops.convert_to_tensor(x) for x in inputs_of(model)]
    whole = [t.numpy() for t in keras.tree.flatten(model(given_inputs))]
    at_start = dict(zip(graph.inputs, given_inputs, strict=True))
    values = graph.run(dict(at_start), call)
    for boundary in graph.boundaries:
        # Only what the boundary says is alive is handed over: one tensor, and some inputs.
        handed = {boundary.key: values[boundary.key]}
        for position in boundary.side_inputs:
            handed[graph.inputs[position]] = given_inputs[position]
        graph.run(handed, call, nodes=boundary.side_nodes)
        graph.run(handed, call, nodes=range(boundary.index, len(graph.nodes)))
        for key, expected in zip(graph.outputs, whole, strict=True):
            np.testing.assert_array_equal(handed[key].numpy(), expected)


def test_a_nested_model_is_entered_and_can_be_cut_inside():
    inner = keras.Sequential(
        [
            keras.Input((WIDTH,)),
            keras.layers.Dense(WIDTH, name="a"),
            keras.layers.Dense(3, name="b"),
        ]
    )
    inputs = keras.Input((WIDTH,))
    model = keras.Model(inputs, keras.layers.Dense(1, name="c")(inner(inputs)))
    graph = FunctionalGraph(model)
    cut_after = [graph.nodes[b.index - 1].layer for b in graph.boundaries]
    assert [layer.name for layer in cut_after if layer is not None] == ["a", "b", "c"]
    assert graph.boundaries[0].shape == (None, WIDTH)


def test_a_layer_that_is_called_on_both_sides_leaves_no_boundary_between():
    shared = keras.layers.Dense(WIDTH, name="shared")
    inputs = keras.Input((WIDTH,))
    model = keras.Model(inputs, shared(keras.layers.Dense(WIDTH, name="mid")(shared(inputs))))
    assert [b.index for b in FunctionalGraph(model).boundaries] == [3]


def test_a_model_that_is_not_functional_has_no_graph():
    class Own(keras.Model):
        def call(self, x):
            return x

    with pytest.raises(TypeError, match=r"'own' is not a built functional or Sequential model"):
        FunctionalGraph(Own(name="own"))
