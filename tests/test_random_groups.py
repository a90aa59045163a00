"""Layer groups of random graphs: each layer in one, in order, cut where one tensor is alive."""

import itertools

import keras
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from keras_transfer import backbone_groups
from keras_transfer._functional_graph import FunctionalGraph
from tests.test_functional_graph import boundaries_by_brute_force, random_model, steps

SPECS = st.sampled_from(["auto", "blocks", "blocks", "number"])


@pytest.fixture(scope="module")
def tried(request):
    """How many graphs and groups were looked at; printed at the end."""
    counts = []
    yield counts
    capture = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        print(f"\n{len(counts)} random graphs with {sum(counts)} groups tried.")


@settings(max_examples=100)
@given(steps, st.booleans(), st.booleans(), SPECS, st.data())
def test_layer_groups_partition_a_random_graph(tried, steps, two_inputs, two_outputs, spec, data):
    model = random_model(steps, two_inputs, two_outputs)
    assume(model.weights)
    if spec == "number":
        spec = data.draw(st.integers(1, len(backbone_groups(model, "blocks"))))
    groups = backbone_groups(model, spec)
    tried.append(len(groups))
    if isinstance(spec, int):
        assert len(groups) == spec
    assert len(set(groups.names)) == len(groups)

    # Every layer is in one group.
    layers = [la for la in model.layers if not isinstance(la, keras.layers.InputLayer)]
    grouped = [id(layer) for group in groups for layer in group.layers]
    assert sorted(grouped) == sorted(map(id, layers))

    # The order of the groups is that of the graph, and no cut goes through a live tensor.
    graph = FunctionalGraph(model)
    places = [
        [n for n, node in enumerate(graph.nodes) if any(node.layer is la for la in group.layers)]
        for group in groups
    ]
    cuts = boundaries_by_brute_force(graph)
    for below, above in itertools.pairwise(places):
        assert max(below) < min(above)
        assert any(max(below) < cut <= min(above) for cut in cuts)
