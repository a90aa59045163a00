"""Canaries: each private name of Keras and TensorFlow still does what the package needs.

Each function of `_keras_internals.py` has a test here called `test_<function>...` that looks
at what the function does, not at whether an attribute is there.
"""

import ast
import inspect
import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_transfer
from keras_transfer import _keras_internals

KO = keras.optimizers
PACKAGE = pathlib.Path(keras_transfer.__file__).parent
FUNCTIONS = [
    name
    for name, function in inspect.getmembers(_keras_internals, inspect.isfunction)
    if function.__module__ == _keras_internals.__name__
]


# --- The rule itself ------------------------------------------------------------------------


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_has_a_canary(name):
    tests = [test for test in globals() if test.startswith("test_")]
    found = [test for test in tests if test == f"test_{name}" or test.startswith(f"test_{name}_")]
    assert found, f"write test_{name}... here"


def private_names(path):
    """Private attributes that a file reads from objects other than `self`, and those it makes."""
    tree = ast.parse(path.read_text())
    read, made = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            made.add(node.name)
        elif isinstance(node, ast.Attribute) and node.attr.startswith("_"):
            if isinstance(node.ctx, ast.Store):
                made.add(node.attr)
            elif not node.attr.startswith("__"):
                read.add(node.attr)
        elif isinstance(node, ast.alias):
            made.add(node.name)
        elif isinstance(node, ast.AnnAssign | ast.Name):
            name = getattr(node.target, "id", "") if isinstance(node, ast.AnnAssign) else node.id
            made.add(name)
    return read, made


def test_no_other_file_reads_a_private_name_of_keras():
    files = [p for p in sorted(PACKAGE.rglob("*.py")) if p.name != "_keras_internals.py"]
    found = {path: private_names(path) for path in files}
    ours = {name for _, made in found.values() for name in made}
    foreign = {path.name: read - ours for path, (read, _) in found.items() if read - ours}
    of_keras_tuner = {
        "_isolated.py",
        "_oracle.py",
        "_progress.py",
        "tuner.py",
    }  # canaries in tests/tuning
    foreign = {name: read for name, read in foreign.items() if name not in of_keras_tuner}
    # Inherited by the discriminative optimizer; its canary is in tests/optimizers.
    assert foreign == {"_step.py": {"_clip_gradients"}}


# --- Layers and variables -------------------------------------------------------------------


def dense_model():
    return keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(3, name="low"),
            keras.layers.BatchNormalization(name="norm"),
            keras.layers.Dense(2, name="high"),
        ]
    )


def names(layers):
    return [layer.name for layer in layers]


class Holder(keras.layers.Layer):
    """A layer that keeps layers as an attribute, in a list and in a dictionary."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.one = keras.layers.Dense(2, name="one")
        self.several = [keras.layers.Dense(2, name="two"), {"k": keras.layers.Dense(2, name="x")}]

    def build(self, shape):
        self.one.build(shape)

    def call(self, x):
        return self.one(x)


def test_flatten_layers_finds_all_in_order_and_each_once():
    shared = dense_model()
    inputs = keras.Input((4,))
    model = keras.Model(inputs, [shared(inputs), Holder(name="holder")(shared(inputs))])
    found = names(_keras_internals.flatten_layers(model))
    assert found[:1] == [model.name]
    inner = [n for n in found if n in ("low", "norm", "high", "holder", "one", "two", "x")]
    assert inner == ["low", "norm", "high", "holder", "one", "two", "x"]


def test_own_trainable_variables_are_found_frozen_or_not():
    layer = keras.layers.BatchNormalization()
    layer.build((None, 3))
    own = _keras_internals.own_trainable_variables
    assert [v.name for v in own(layer)] == ["gamma", "beta"]
    layer.trainable = False
    assert [v.name for v in own(layer)] == ["gamma", "beta"]
    layer.trainable = True
    layer.gamma.trainable = False
    assert [v.name for v in own(layer)] == ["gamma", "beta"]
    assert own(Holder()) == []


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (keras.layers.Dense(3), (None, 4)),
        (keras.layers.EinsumDense("ab,bc->ac", 3), (None, 4)),
        (keras.layers.Embedding(5, 4), (None, 2)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_kernels_under_lora_are_those_that_keras_froze(layer, shape):
    layer.build(shape)
    kernel = layer.weights[0]
    assert _keras_internals.kernels_under_lora(layer) == []
    layer.enable_lora(2)
    (kept,) = _keras_internals.kernels_under_lora(layer)
    assert kept is kernel
    assert not any(v is kernel for v in layer.trainable_variables)
    layer.trainable = False
    layer.trainable = True
    # Control: this thaws it. When it no longer does, the function can go.
    assert any(v is kernel for v in layer.trainable_variables)


def test_accepts_training_tells_who_takes_the_argument():
    assert _keras_internals.accepts_training(keras.layers.Dropout(0.5))
    assert _keras_internals.accepts_training(dense_model())
    assert not _keras_internals.accepts_training(keras.layers.ReLU())
    assert not _keras_internals.accepts_training(keras.layers.Flatten())


def test_is_random_tells_who_draws_random_numbers():
    assert _keras_internals.is_random(keras.layers.Dropout(0.5))
    assert _keras_internals.is_random(keras.layers.GaussianNoise(1.0))
    assert _keras_internals.is_random(keras.layers.RandomFlip())
    assert not _keras_internals.is_random(keras.layers.Dense(2))


def test_unlock_state_lets_a_built_layer_have_more():
    layer = Holder()
    layer.build((None, 2))
    with pytest.raises(ValueError, match="already built"):
        layer.more = keras.layers.Dense(2, name="more")
    _keras_internals.unlock_state(layer)
    layer.more = keras.layers.Dense(2, name="more")
    assert "more" in names(_keras_internals.child_layers(layer))


def test_set_mask_is_seen_by_the_next_layer():
    x = keras.ops.convert_to_tensor([[[1.0], [3.0]]])
    _keras_internals.set_mask(x, keras.ops.convert_to_tensor([[True, False]]))
    assert float(keras.layers.GlobalAveragePooling1D()(x)[0, 0]) == 1.0


# --- The graph of a functional model ----------------------------------------------------------


class WithOwnCall(keras.Model):
    def call(self, inputs):
        return super().call(inputs) + 1.0


class WithOwnSteps(keras.Model):
    def train_step(self, data):
        return super().train_step(data)


def test_functional_of_finds_the_graph_that_calling_the_model_runs():
    model = dense_model()
    functional = _keras_internals.functional_of(model)
    x = np.ones((2, 4), "float32")
    np.testing.assert_array_equal(functional(x), model(x))
    inputs = keras.Input((4,))
    assert _keras_internals.functional_of(WithOwnCall(inputs, model(inputs))) is None
    with_steps = WithOwnSteps(inputs, model(inputs))
    assert _keras_internals.functional_of(with_steps) is with_steps
    assert _keras_internals.functional_of(keras.Sequential([keras.layers.Dense(2)])) is None
    assert _keras_internals.functional_of(Holder()) is None


def test_operation_of_is_the_last_layer_or_operation():
    inputs = keras.Input((4,))
    layer = keras.layers.Dense(3, name="logits")
    logits = layer(inputs)
    assert _keras_internals.operation_of(logits) is layer
    probabilities = keras.ops.softmax(logits)
    assert not isinstance(_keras_internals.operation_of(probabilities), keras.layers.Layer)


def branched():
    a, b = keras.Input((4,), name="a"), keras.Input((4,), name="b")
    x = keras.layers.Dense(4, name="first")(a)
    y = keras.layers.Add(name="sum")([x, b])
    z = keras.layers.Dense(2, name="last")(y)
    return keras.Model({"a": a, "b": b}, {"z": z, "y": y})


def test_graph_nodes_come_in_an_order_that_can_be_run():
    model = branched()
    nodes = list(_keras_internals.graph_nodes(model))
    assert [n.operation.name for n in nodes] == ["first", "sum", "last"]
    known = {id(t) for t in _keras_internals.graph_inputs(model)}
    for node in nodes:
        assert all(id(t) in known for t in node.input_tensors)
        known.update(id(t) for t in node.outputs)
    assert all(id(t) in known for t in _keras_internals.graph_outputs(model))


def test_graph_inputs_are_flat_and_in_the_order_of_the_structure():
    model = branched()
    flat = keras.tree.flatten(model.input)
    assert [id(t) for t in _keras_internals.graph_inputs(model)] == [id(t) for t in flat]


def test_graph_outputs_are_flat_and_in_the_order_of_the_structure():
    model = branched()
    flat = keras.tree.flatten(model.output)
    assert [id(t) for t in _keras_internals.graph_outputs(model)] == [id(t) for t in flat]


def test_standardize_inputs_flattens_casts_and_adds_an_axis():
    ids = keras.Input((1,), dtype="int32", name="ids")
    x = keras.Input((3,), name="x")
    model = keras.Model(
        {"x": x, "ids": ids}, keras.layers.Dense(1)(x) + keras.ops.cast(ids, "float32")
    )
    given = {"x": np.ones((2, 3), "float64"), "ids": np.array([1, 2])}
    flat = _keras_internals.standardize_inputs(model, given)
    assert [(tuple(t.shape), keras.backend.standardize_dtype(t.dtype)) for t in flat] == [
        ((2, 1), "int32"),
        ((2, 3), "float32"),
    ]


def test_standardize_inputs_keeps_masks():
    model = keras.Sequential([keras.Input((2, 1)), keras.layers.GlobalAveragePooling1D()])
    x = keras.ops.convert_to_tensor([[[1.0], [3.0]]])
    _keras_internals.set_mask(x, keras.ops.convert_to_tensor([[True, False]]))
    (flat,) = _keras_internals.standardize_inputs(_keras_internals.functional_of(model), x)
    assert float(keras.layers.GlobalAveragePooling1D()(flat)[0, 0]) == 1.0


def test_fill_in_arguments_gives_what_the_operation_was_called_with():
    a, b = keras.Input((4,)), keras.Input((4,))
    attention = keras.layers.MultiHeadAttention(1, 2, name="attention")
    query, value = a[:, None, :], b[:, None, :]
    out = attention(query, value=value, use_causal_mask=True)
    model = keras.Model([a, b], out)
    node = next(n for n in _keras_internals.graph_nodes(model) if n.operation is attention)
    values = {id(query): "the query", id(value): "the value"}
    args, kwargs = _keras_internals.fill_in_arguments(node.arguments, values)
    assert args == ("the query",)
    assert (kwargs["value"], kwargs["use_causal_mask"]) == ("the value", True)


def test_pack_outputs_gives_the_structure_of_a_call():
    model = branched()
    flat = [np.ones((1, 4)), np.zeros((1, 2))]
    packed = _keras_internals.pack_outputs(model, flat)
    called = model({"a": np.ones((1, 4)), "b": np.ones((1, 4))})
    assert {k: tuple(v.shape) for k, v in packed.items()} == {
        k: tuple(v.shape) for k, v in called.items()
    }
    functional = _keras_internals.functional_of(dense_model())
    assert _keras_internals.pack_outputs(functional, [flat[1]]) is flat[1]


def test_call_in_context_hands_training_to_layers_inside():
    class Outer(keras.layers.Layer):
        def __init__(self, flag):
            super().__init__()
            self.flag = flag
            # Has no `training` argument of its own, so its dropout asks the context.
            self.inner = Wrapped()

        def call(self, x, training=None):
            run = lambda: self.inner(x)  # noqa: E731
            x = _keras_internals.call_in_context(self, run, training=self.flag)
            return x, self.inner(keras.ops.ones((1, 50)))

    class Wrapped(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.dropout = keras.layers.Dropout(0.5)

        def call(self, x):
            return self.dropout(x)

    x = np.ones((1, 50), "float32")
    for outer in (True, False):
        for flag in (True, False):
            inside, after = Outer(flag)(x, training=outer)
            assert (np.ptp(inside.numpy()) > 0) == flag
            assert (np.ptp(after.numpy()) > 0) == outer, "the context must be put back"


# --- Training ---------------------------------------------------------------------------------


def compiled(optimizer="adam", **options):
    model = dense_model()
    model.compile(optimizer, "mse", **options)
    return model


def batch():
    rng = np.random.default_rng(0)
    return rng.normal(size=(8, 4)).astype("float32"), rng.normal(size=(8, 2)).astype("float32")


def test_set_optimizer_trains_and_saves_with_the_new_one_and_keeps_the_metrics(tmp_path):
    model = compiled("adam", metrics=["mae"])
    model.fit(*batch(), verbose=0)
    metrics = model.metrics
    _keras_internals.set_optimizer(model, KO.SGD(0.125))
    assert [id(m) for m in model.metrics] == [id(m) for m in metrics]
    model.make_train_function(force=True)
    model.fit(*batch(), verbose=0)
    assert int(model.optimizer.iterations.numpy()) == 1
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    assert type(loaded.optimizer) is KO.SGD
    assert float(loaded.optimizer.learning_rate.numpy()) == 0.125


def test_sync_compiled_trainable_state_leaves_keras_nothing_to_warn_of(recwarn):
    model = compiled()
    check = type(model)._warn_if_trainable_state_changed
    model.layers[0].trainable = False
    check(model)
    assert "trainable" in str(recwarn.pop().message), "Keras no longer looks at its flags"
    model.layers[0].trainable = True
    _keras_internals.sync_compiled_trainable_state(model)
    check(model)
    assert not recwarn.list


def test_metric_direction_is_what_keras_knows_of_a_metric():
    own = keras.metrics.MeanMetricWrapper(lambda y, p: keras.ops.mean(p), name="own")
    model = compiled(metrics=["accuracy", "mae", own])
    model.fit(*batch(), verbose=0)
    direction = _keras_internals.metric_direction
    assert direction(model, "accuracy") == "up"
    assert direction(model, "mae") == "down"
    assert direction(model, "own") is None
    assert direction(model, "unheard_of") is None


# --- Optimizers -------------------------------------------------------------------------------


def built(optimizer, shapes=((2, 3), (3,))):
    variables = [keras.Variable(np.ones(s, "float32"), name=f"v{i}") for i, s in enumerate(shapes)]
    optimizer.build(variables)
    return optimizer, variables


def ones_like(variables):
    return [keras.ops.ones(v.shape) for v in variables]


def test_step_counter_counts_calls_of_apply_where_iterations_counts_updates():
    optimizer, variables = built(KO.SGD(0.1, gradient_accumulation_steps=2))
    for _ in range(5):
        optimizer.apply(ones_like(variables))
    assert int(_keras_internals.step_counter(optimizer).numpy()) == 5
    assert int(optimizer.iterations.numpy()) == 2
    _keras_internals.step_counter(optimizer).assign(8)
    assert int(optimizer.iterations.numpy()) == 4


def test_rate_source_is_a_variable_a_schedule_or_a_function():
    source = _keras_internals.rate_source
    optimizer = KO.SGD(0.1)
    source(optimizer).assign(0.5)
    assert float(optimizer.learning_rate.numpy()) == 0.5
    schedule = KO.schedules.ExponentialDecay(0.1, 10, 0.9)
    assert source(KO.SGD(schedule)) is schedule

    def rate():
        return 0.1

    assert source(KO.SGD(rate)) is rate


def test_known_variables_are_those_of_build_in_its_order():
    optimizer, variables = built(KO.Adam())
    assert [id(v) for v in _keras_internals.known_variables(optimizer)] == [
        id(v) for v in variables
    ]


def test_set_known_variables_says_what_apply_takes_and_what_is_averaged():
    optimizer, (first, second) = built(KO.SGD(0.5, use_ema=True, ema_momentum=0.5))
    own = len(optimizer.variables)
    averages = _keras_internals.moving_averages(optimizer)
    _keras_internals.set_known_variables(optimizer, [second], [averages[1]])
    optimizer.apply([keras.ops.ones((3,))], [second])
    np.testing.assert_array_equal(second.numpy(), np.full(3, 0.5, "float32"))
    optimizer.finalize_variable_values([second])
    np.testing.assert_array_equal(second.numpy(), averages[1].numpy())
    np.testing.assert_array_equal(first.numpy(), np.ones((2, 3), "float32"))
    assert len(optimizer.variables) == own, "the model's variables count as the optimizer's own"
    with pytest.raises(ValueError, match="Unknown variable"):
        optimizer.apply([keras.ops.ones((2, 3))], [first])


def test_variable_key_is_one_for_a_variable_and_what_keras_holds_of_it():
    optimizer, (first, second) = built(KO.SGD())
    key = _keras_internals.variable_key
    assert key(optimizer, first) == key(optimizer, first.value)
    assert key(optimizer, first) != key(optimizer, second)


def test_moving_averages_are_kept_for_each_variable():
    optimizer, variables = built(KO.SGD(0.5, use_ema=True, ema_momentum=0.75))
    optimizer.apply(ones_like(variables))
    optimizer.apply(ones_like(variables))
    averages = _keras_internals.moving_averages(optimizer)
    assert [tuple(a.shape) for a in averages] == [tuple(v.shape) for v in variables]
    # The first step sets the average; the second moves it by a quarter of the way.
    np.testing.assert_allclose(averages[1].numpy(), 0.75 * 0.5 + 0.25 * 0.0)
    assert _keras_internals.moving_averages(built(KO.SGD())[0]) == []


def test_gradient_accumulators_hold_the_sum_so_far():
    optimizer, variables = built(KO.SGD(0.1, gradient_accumulation_steps=3))
    optimizer.apply(ones_like(variables))
    optimizer.apply(ones_like(variables))
    sums = _keras_internals.gradient_accumulators(optimizer)
    assert [tuple(a.shape) for a in sums] == [tuple(v.shape) for v in variables]
    np.testing.assert_array_equal(sums[1].numpy(), np.full(3, 2.0))
    assert _keras_internals.gradient_accumulators(built(KO.SGD())[0]) == []


SLOTS = {
    "SGD": {"momentums"},
    "Adam": {"momentums", "velocities"},
    "AdamW": {"momentums", "velocities"},
    "Nadam": {"momentums", "velocities"},
    "RMSprop": {"velocities"},
    "Lion": {"momentums"},
}


@pytest.mark.parametrize("name", SLOTS)
def test_optimizer_slots_hold_all_state_that_is_kept_by_variable(name):
    options = {"momentum": 0.9} if name == "SGD" else {}
    optimizer, variables = built(getattr(KO, name)(use_ema=True, **options))
    slots = _keras_internals.optimizer_slots(optimizer)
    assert {attribute.strip("_") for attribute in slots} == SLOTS[name]
    for values in slots.values():
        assert [tuple(slot.shape) for slot in values] == [tuple(v.shape) for v in variables]
    found = {id(slot) for values in slots.values() for slot in values}
    found |= {id(v) for v in _keras_internals.optimizer_shared_state(optimizer).values()}
    found |= {id(v) for v in _keras_internals.moving_averages(optimizer)}
    found |= {id(_keras_internals.step_counter(optimizer))}
    found |= {id(_keras_internals.rate_source(optimizer))}
    assert {v.path for v in optimizer.variables if id(v) not in found} == set()


def test_optimizer_shared_state_is_nadams_product():
    optimizer, variables = built(KO.Nadam())
    shared = _keras_internals.optimizer_shared_state(optimizer)
    before = [float(v.numpy()) for v in shared.values()]
    optimizer.apply(ones_like(variables))
    assert len(before) == 1
    assert [float(v.numpy()) for v in shared.values()] != before
    assert _keras_internals.optimizer_shared_state(built(KO.Adam())[0]) == {}


def excluding(**what):
    optimizer = KO.AdamW(0.1, weight_decay=0.5)
    optimizer.exclude_from_weight_decay(**what)
    return optimizer


def test_weight_decay_exclusions_are_what_was_told():
    variable = keras.Variable(np.ones(2, "float32"), name="bias")
    optimizer = excluding(var_list=[variable], var_names=["gamma"])
    keys, pattern = _keras_internals.weight_decay_exclusions(optimizer)
    assert keys == {_keras_internals.variable_key(optimizer, variable)}
    assert pattern.search("norm/gamma")
    assert _keras_internals.weight_decay_exclusions(KO.AdamW()) == (set(), None)


@pytest.mark.parametrize("build_first", [True, False])
def test_set_weight_decay_exclusions_exempts_a_variable(build_first):
    variables = [keras.Variable(np.ones(2, "float32"), name=n) for n in ("kernel", "bias")]
    told = excluding(var_list=[variables[1]])
    optimizer = KO.AdamW(0.1, weight_decay=0.5)
    if build_first:
        optimizer.build(variables)
        assert _keras_internals.decays(optimizer, variables[1])
    _keras_internals.set_weight_decay_exclusions(
        optimizer, *_keras_internals.weight_decay_exclusions(told)
    )
    optimizer.build(variables)
    optimizer.apply([keras.ops.zeros(2)] * 2, variables)
    assert [float(v[0]) for v in variables] == pytest.approx([0.95, 1.0])


def test_decays_tells_which_variables_shrink():
    kernel, bias = (keras.Variable(np.ones(2, "float32"), name=n) for n in ("kernel", "bias"))
    optimizer = excluding(var_names=["bias"])
    optimizer.build([kernel, bias])
    optimizer.apply([keras.ops.zeros(2)] * 2, [kernel, bias])
    assert [_keras_internals.decays(optimizer, v) for v in (kernel, bias)] == [True, False]
    assert [float(v[0]) < 1.0 for v in (kernel, bias)] == [True, False]


def test_skip_all_reduce_hands_gradients_on_as_they_are():
    # That it does so on replicas is seen in tests/optimizers/test_replicas.py: two replicas
    # would otherwise sum what has been summed.
    optimizer, variables = built(KO.SGD(1.0))
    _keras_internals.skip_all_reduce(optimizer)
    pairs = [(g, v) for g, v in zip(ones_like(variables), variables, strict=True)]
    assert optimizer._all_reduce_sum_gradients(pairs) is pairs
    optimizer.apply(ones_like(variables), variables)
    np.testing.assert_array_equal(variables[1].numpy(), np.zeros(3))


def test_decay_weights_shrinks_what_it_is_given_at_the_current_rate():
    optimizer, (first, second) = built(KO.AdamW(0.1, weight_decay=0.5))
    _keras_internals.decay_weights(optimizer, [second])
    np.testing.assert_allclose(second.numpy(), 1 - 0.1 * 0.5, rtol=1e-6)
    np.testing.assert_array_equal(first.numpy(), np.ones((2, 3)))


def test_update_variables_moves_at_the_rate_given_and_does_nothing_else():
    optimizer, variables = built(KO.SGD(9.0, clipvalue=0.1, use_ema=True, weight_decay=0.5))
    averages = [a.numpy() for a in _keras_internals.moving_averages(optimizer)]
    _keras_internals.update_variables(
        optimizer, ones_like(variables), variables, keras.ops.convert_to_tensor(0.25)
    )
    np.testing.assert_array_equal(variables[1].numpy(), np.full(3, 0.75))
    assert int(optimizer.iterations.numpy()) == 0
    for a, b in zip(averages, _keras_internals.moving_averages(optimizer), strict=True):
        np.testing.assert_array_equal(a, b.numpy())


def test_overrides_apply_names_what_a_class_replaces():
    class Own(KO.SGD):
        def apply(self, grads, trainable_variables=None):
            return super().apply(grads, trainable_variables)

    assert _keras_internals.overrides_apply(KO.Adam()) is None
    assert _keras_internals.overrides_apply(Own()) == "apply"


def loss_scaling(*shapes):
    optimizer = KO.LossScaleOptimizer(KO.SGD(momentum=0.9), initial_scale=8.0)
    optimizer.build([keras.Variable(np.ones(shape), name="v") for shape in shapes])
    return optimizer


def test_save_inner_state_once_lets_a_scale_cross_stages():
    saved, other = loss_scaling(3), loss_scaling(2, 3)
    saved.dynamic_scale.assign(32.0)
    store = {}
    saved.save_own_variables(store)
    # Control: Keras numbers the inner optimizer's variables among the scale's own.
    with pytest.warns(UserWarning, match="Skipping variable loading"):
        other.load_own_variables(store)
    for optimizer in (saved, other):
        _keras_internals.save_inner_state_once(optimizer)
    own = {}
    saved.save_own_variables(own)
    assert len(own) < len(store)
    for each in (store, own):
        other.dynamic_scale.assign(1.0)
        other.load_own_variables(each)
        assert float(other.dynamic_scale.numpy()) == 32.0
    unbuilt = KO.LossScaleOptimizer(KO.SGD())
    _keras_internals.save_inner_state_once(unbuilt)
    with pytest.warns(UserWarning, match="is not loaded, because the optimizer is not built"):
        unbuilt.load_own_variables(own)


def test_save_inner_state_twice_gives_the_stock_way_back():
    optimizer = loss_scaling(3)
    before, after = {}, {}
    optimizer.save_own_variables(before)
    _keras_internals.save_inner_state_once(optimizer)
    _keras_internals.save_inner_state_twice(optimizer)
    optimizer.save_own_variables(after)
    assert before.keys() == after.keys()
    optimizer.load_own_variables(after)


def test_check_finite_on_all_replicas_is_keras_s_check_on_one():
    # On two replicas: tests/optimizers/test_replicas.py.
    optimizer = loss_scaling(3)
    _keras_internals.check_finite_on_all_replicas(optimizer)
    assert bool(optimizer.check_finite([tf.constant([1.0]), None]))
    assert not bool(optimizer.check_finite([tf.constant([1.0, np.inf])]))


def test_check_finite_as_keras_does_undoes_the_other():
    optimizer = loss_scaling(3)
    _keras_internals.check_finite_on_all_replicas(optimizer)
    _keras_internals.check_finite_as_keras_does(optimizer)
    assert optimizer.check_finite.__func__ is KO.LossScaleOptimizer.check_finite


def test_needs_merge_call_is_so_only_on_several_replicas():
    # On two replicas: tests/optimizers/test_replicas.py, whose cases fail if this is wrong.
    assert not _keras_internals.needs_merge_call()


# --- Weights by name --------------------------------------------------------------------------


def test_child_layers_are_those_held_directly_in_the_order_of_attachment():
    assert names(_keras_internals.child_layers(Holder())) == ["one", "two", "x"]
    model = dense_model()
    inputs = keras.Input((4,))
    outer = keras.Model(inputs, keras.layers.Dense(2, name="new")(model(inputs)))
    assert names(_keras_internals.child_layers(outer))[1:] == [model.name, "new"]


def test_saved_variables_are_numbered_as_in_a_weights_file(tmp_path):
    import h5py

    layer = keras.layers.BatchNormalization(name="norm")
    model = keras.Sequential([keras.Input((3,)), layer])
    for number, variable in enumerate(_keras_internals.saved_variables(layer)):
        variable.assign(np.full(3, number, "float32"))
    model.save_weights(tmp_path / "w.weights.h5")
    with h5py.File(tmp_path / "w.weights.h5") as file:
        stored = file["layers/batch_normalization/vars"]
        assert {key: float(stored[key][0]) for key in stored} == {
            str(n): float(n) for n in range(4)
        }


# --- Runs that leave no trace (the LR range test) ---------------------------------------------


def test_compiled_trainable_state_is_what_compile_remembers():
    model = dense_model()
    model.compile("adam", "mse")
    before = _keras_internals.compiled_trainable_state(model)
    assert before[model.layers[0]] is True
    model.layers[0].trainable = False
    _keras_internals.sync_compiled_trainable_state(model)
    assert _keras_internals.compiled_trainable_state(model)[model.layers[0]] is False


def test_set_compiled_trainable_state_puts_it_back():
    model = dense_model()
    model.compile("adam", "mse")
    before = _keras_internals.compiled_trainable_state(model)
    model.layers[0].trainable = False
    _keras_internals.sync_compiled_trainable_state(model)
    _keras_internals.set_compiled_trainable_state(model, before)
    assert _keras_internals.compiled_trainable_state(model) == before


def test_build_symbolically_makes_metrics_and_slots_before_the_first_step():
    with tf.distribute.OneDeviceStrategy("CPU:0").scope():
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
        model.compile("adam", "mse", metrics=["mae"])
    assert not model.optimizer.built
    _keras_internals.build_symbolically(model, (np.ones((4, 3)), np.ones((4, 2))))
    assert model.optimizer.built
    assert any("mean_absolute_error" in v.path or "mae" in v.path for v in model.metrics_variables)


@pytest.mark.parametrize("seed", [1, None], ids=["seeded", "unseeded"])
def test_random_numbers_apart_leave_those_drawn_afterwards_alone(seed):
    def draws():
        return [
            float(keras.random.uniform(())),
            float(tf.random.uniform(())) if seed is not None else 0,
            float(tf.random.uniform((), seed=4)),
            float(tf.random.get_global_generator().uniform(())),
        ]

    def first_and_last(between):
        keras.utils.set_random_seed(1)
        tf.random.set_seed(seed)
        tf.random.set_global_generator(tf.random.Generator.from_seed(1))
        return draws(), between(), draws()

    def apart():
        with _keras_internals.random_numbers_apart():
            return draws()

    first, _, last = first_and_last(lambda: None)
    first_again, inside, last_again = first_and_last(apart)
    assert first_again == first
    assert last_again == last
    if seed is not None:
        assert inside[1] not in (first[1], last[1])
    # Control: what is drawn between does matter. When this fails, TensorFlow has changed.
    assert first_and_last(draws)[2] != last


def test_shared_generators_are_those_that_unseeded_calls_draw_from():
    keras.utils.clear_session(free_memory=False)
    assert "keras" not in _keras_internals.shared_generators()
    generators = _keras_internals.shared_generators(make=["keras", "tensorflow"])
    before = {name: state.numpy() for name, state in generators.items()}
    keras.random.uniform(())
    tf.random.get_global_generator().uniform(())
    for name, state in generators.items():
        assert not np.array_equal(before[name], state.numpy()), name


def test_random_numbers_apart_leave_the_generator_that_keras_has_yet_to_make():
    keras.utils.set_random_seed(1)
    with _keras_internals.random_numbers_apart():
        keras.random.uniform(())
    value = float(keras.random.uniform(()))
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(1)
    assert float(keras.random.uniform(())) == value


def test_with_own_shuffles_leaves_the_order_of_the_original_alone():
    def orders(dataset):
        return [[int(x) for x in dataset] for _ in range(3)]

    def make():
        return tf.data.Dataset.range(8).shuffle(8, seed=1).map(lambda x: x + 1).repeat(2)

    expected = orders(make())
    dataset = make()
    copy = _keras_internals.with_own_shuffles(dataset)
    assert orders(copy) == expected
    assert orders(dataset) == expected
    # Control: the data set itself goes on. When this fails, no copy is needed any more.
    assert orders(dataset) != expected


# --- Cached features --------------------------------------------------------------------------


def test_get_mask_reads_what_embedding_puts_on_its_output():
    x = keras.layers.Embedding(5, 2, mask_zero=True)(np.array([[1, 0]]))
    assert _keras_internals.get_mask(x).numpy().tolist() == [[True, False]]
    assert _keras_internals.get_mask(keras.ops.ones(2)) is None


def test_take_initial_epoch_reads_it_once_where_keras_would_start_there_for_ever(tmp_path):
    def epochs_of(model, backup):
        callbacks = [keras.callbacks.BackupAndRestore(tmp_path)] if backup else []
        return model.fit(*batch(), epochs=3, callbacks=callbacks, verbose=0).epoch

    class KilledError(Exception):
        pass

    def stop(epoch, logs):
        if epoch == 1:
            raise KilledError

    model = compiled()
    stopping = keras.callbacks.LambdaCallback(on_epoch_begin=stop)
    backup = keras.callbacks.BackupAndRestore(tmp_path, delete_checkpoint=False)
    with pytest.raises(KilledError):
        model.fit(*batch(), epochs=3, callbacks=[backup, stopping], verbose=0)
    resumed = compiled()
    assert epochs_of(resumed, True) == [1, 2]
    assert epochs_of(resumed, False) == [1, 2], "Keras clears it now: the function can go"
    assert _keras_internals.take_initial_epoch(resumed) == 1
    assert _keras_internals.take_initial_epoch(resumed) is None
    assert epochs_of(resumed, False) == [0, 1, 2]


def graph_of(function, *values):
    return tf.function(function).get_concrete_function(*values).graph


def test_unsafe_operations_are_those_with_state_or_random_numbers():
    found = _keras_internals.unsafe_operations
    variable = tf.Variable(1.0)
    x = tf.constant([1.0, 2.0])
    assert found(graph_of(lambda x: tf.sqrt(x) * 2.0, x), ()) == []
    assert found(graph_of(lambda x: x * variable, x), ()) == ["ReadVariableOp"]
    assert found(graph_of(lambda x: x * variable, x), {"ReadVariableOp"}) == []
    stateless = graph_of(lambda x: x + tf.random.stateless_uniform((2,), [1, 2]), x)
    assert any("Random" in name for name in found(stateless, ()))
    assert "RandomUniform" in found(graph_of(lambda x: x + tf.random.uniform((2,)), x), ())


def test_unsafe_operations_are_found_in_functions_that_the_graph_calls():
    @tf.function
    def noise(x):
        return x + tf.random.uniform((2,))

    def through_cond(x):
        return tf.cond(x[0] > 0, lambda: noise(x), lambda: x)

    safe = {"If", "StatefulPartitionedCall"}
    x = tf.constant([1.0, 2.0])
    assert _keras_internals.unsafe_operations(graph_of(through_cond, x), safe) == ["RandomUniform"]


def test_operations_are_those_of_the_graph_itself():
    graph = graph_of(lambda x: tf.sqrt(x) * 2.0, tf.constant([1.0, 2.0]))
    types = {operation.type for operation in _keras_internals.operations(graph)}
    assert {"Sqrt", "Mul", "Const"} <= types


@pytest.mark.parametrize("size", [1, 1000], ids=["small, a constant", "large, a placeholder"])
def test_captured_tensors_are_what_a_function_reads_from_outside(size):
    outside = tf.fill((size,), 3.0)
    dataset = tf.data.Dataset.from_tensors([1.0]).map(lambda x: x * 2.0 + outside)
    (graph,) = _keras_internals.dataset_graphs(dataset)
    captured = [tensor.name for tensor in _keras_internals.captured_tensors(graph)]
    (added,) = [op for op in _keras_internals.operations(graph) if op.type == "AddV2"]
    assert captured == [added.inputs[1].name]


def test_dataset_inputs_are_what_a_data_set_reads_from():
    one, two = tf.data.Dataset.range(3), tf.data.Dataset.range(4)
    both = _keras_internals.dataset_inputs(tf.data.Dataset.zip(one, two))
    assert [int(dataset.cardinality()) for dataset in both] == [3, 4]
    (read,) = _keras_internals.dataset_inputs(one.batch(2))
    assert int(read.cardinality()) == 3
    assert _keras_internals.dataset_inputs(one) == []


def test_dataset_graphs_are_those_of_the_functions_of_the_last_transformation():
    dataset = tf.data.Dataset.range(3).map(lambda x: x + tf.random.uniform((), 0, 5, tf.int64))
    (graph,) = _keras_internals.dataset_graphs(dataset)
    assert _keras_internals.unsafe_operations(graph, ()) == ["RandomUniformInt"]
    assert _keras_internals.dataset_graphs(dataset.batch(2)) == []


def test_dataset_attribute_is_what_a_transformation_was_told():
    attribute = _keras_internals.dataset_attribute
    dataset = tf.data.Dataset.range(3)
    assert attribute(dataset.shuffle(3), "reshuffle_each_iteration")
    once = dataset.shuffle(3, reshuffle_each_iteration=False)
    assert not attribute(once, "reshuffle_each_iteration")
    assert attribute(dataset.batch(2), "batch_size") == 2
    assert attribute(dataset.batch(2, num_parallel_calls=2), "batch_size") == 2
    assert attribute(dataset.batch(2, drop_remainder=True), "drop_remainder")
    assert not attribute(dataset.batch(2), "drop_remainder")
    assert attribute(dataset, "batch_size") is None


def test_convert_variables_keeps_values_and_no_variable():
    model = dense_model()
    concrete = tf.function(model).get_concrete_function(tf.TensorSpec((None, 4), tf.float32))
    converted = _keras_internals.convert_variables(concrete)
    x = batch()[0]
    before = model(x).numpy()
    (found,) = converted(tf.constant(x))
    np.testing.assert_allclose(found.numpy(), before, rtol=1e-5, atol=1e-6)
    model.layers[0].kernel.assign(np.zeros((4, 3)))
    np.testing.assert_array_equal(converted(tf.constant(x))[0].numpy(), found.numpy())
    assert not np.allclose(model(x).numpy(), before), "control: the variable does matter"


def test_take_losses_of_call_finds_an_activity_regularizer_and_clears_what_it_added():
    layer = keras.layers.Dense(2, activity_regularizer="l2")
    model = keras.Sequential([keras.Input((3,)), layer])
    assert not _keras_internals.take_losses_of_call(keras.layers.Dense(1))
    layer(np.ones((2, 3)))
    assert _keras_internals.take_losses_of_call(model)
    assert not _keras_internals.take_losses_of_call(model)


def test_captured_values_are_those_of_the_variables_and_tensors_that_a_function_reads():
    layer = keras.layers.Dense(2)
    layer.build((None, 3))
    shift = tf.constant([4.0, 5.0])
    graph = (
        tf.function(lambda x: layer(x) + shift).get_concrete_function(tf.TensorSpec((1, 3))).graph
    )
    names = [tensor.name for tensor in _keras_internals.captured_tensors(graph)]
    found = [v.tolist() for v in _keras_internals.captured_values(graph, names)]
    wanted = [layer.kernel.numpy().tolist(), layer.bias.numpy().tolist(), [4.0, 5.0]]
    assert sorted(found, key=str) == sorted(wanted, key=str)


def test_set_initial_epoch_is_where_a_fit_begins():
    class Starter(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            _keras_internals.set_initial_epoch(self.model, 2)

    model = compiled()
    assert model.fit(*batch(), epochs=4, callbacks=[Starter()], verbose=0).epoch == [2, 3]
    _keras_internals.set_initial_epoch(model, None)
    assert model.fit(*batch(), epochs=2, verbose=0).epoch == [0, 1]


CALLBACKS = {
    "EarlyStopping": lambda path: keras.callbacks.EarlyStopping("loss", restore_best_weights=True),
    "ReduceLROnPlateau": lambda path: keras.callbacks.ReduceLROnPlateau("loss"),
    "ModelCheckpoint": lambda path: keras.callbacks.ModelCheckpoint(
        path / "m.keras", "loss", save_best_only=True
    ),
    "CSVLogger": lambda path: keras.callbacks.CSVLogger(path / "log.csv"),
    "TensorBoard": lambda path: keras.callbacks.TensorBoard(path),
    "SwapEMAWeights": lambda path: keras.callbacks.SwapEMAWeights(),
    "History": lambda path: keras.callbacks.History(),
    "LambdaCallback": lambda path: keras.callbacks.LambdaCallback(),
    "LearningRateScheduler": lambda path: keras.callbacks.LearningRateScheduler(lambda e, r: r),
    "TerminateOnNaN": lambda path: keras.callbacks.TerminateOnNaN(),
}
# What changes and is made anew for each training, or says nothing of it.
MADE_ANEW = {
    "CSVLogger": {"csv_file", "writer", "append_header"},
    "TensorBoard": {
        "_writers", "_prev_summary_state", "_should_write_train_graph", "_train_accumulated_time",
        "_previous_epoch_iterations", "_epoch_start_time", "_batch_start_time", "summary",
        "_start_batch", "_stop_batch", "_profiler_started", "_is_tracing", "_should_trace",
    },
}  # fmt: skip


@pytest.mark.usually("EarlyStopping", "ModelCheckpoint", "SwapEMAWeights")
@pytest.mark.parametrize("name", CALLBACKS)
def test_callback_state_is_all_that_a_training_changes(name, tmp_path):
    callback = CALLBACKS[name](tmp_path)
    model = compiled()
    if name == "SwapEMAWeights":
        model.compile(keras.optimizers.Adam(use_ema=True), "mse")
    seen = []

    def snapshot(epoch, logs):
        ignored = {
            "params",
            "_model",
            "monitor_op",
            "min_delta",
            "_log_write_dir",
            "_train_dir",
            "_val_dir",
        }
        ignored |= MADE_ANEW.get(name, set())
        seen.append({k: repr(v) for k, v in vars(callback).items() if k not in ignored})

    watching = keras.callbacks.LambdaCallback(on_epoch_begin=snapshot)
    model.run_eagerly = name != "TensorBoard"  # which writes the graph
    model.fit(*batch(), epochs=3, callbacks=[watching, callback], verbose=0)
    found = {k for k in seen[-1] if seen[0].get(k) != seen[-1][k]}
    known = _keras_internals.callback_state(callback)
    assert found <= known.keys()
    assert all(hasattr(callback, attribute) for attribute in known)


def test_is_callback_of_keras_tells_a_class_from_one_derived_of_it():
    class Mine(keras.callbacks.EarlyStopping):
        pass

    assert _keras_internals.is_callback_of_keras(keras.callbacks.EarlyStopping())
    assert not _keras_internals.is_callback_of_keras(Mine())
    assert _keras_internals.callback_state(Mine())["wait"] == 0
    assert _keras_internals.callback_state(keras.callbacks.Callback()) is None


def test_callback_list_around_is_the_list_that_calls_though_keras_does_not_say_it():
    class Looking(keras.callbacks.Callback):
        def set_params(self, params):
            super().set_params(params)
            self.found = [_keras_internals.callback_list_around(self)]

        def on_epoch_end(self, epoch, logs=None):
            self.found.append(_keras_internals.callback_list_around(self))

    looking, other = Looking(), keras.callbacks.LambdaCallback()
    compiled().fit(*batch(), callbacks=[other, looking], verbose=0)
    first, last = looking.found
    assert first is last
    assert first.callbacks[:2] == [other, looking]
    held = [v for v in vars(looking).values() if isinstance(v, keras.callbacks.CallbackList)]
    assert not held, "Keras says it now: the function can go"
    assert _keras_internals.callback_list_around(looking) is None


def test_build_metrics_makes_variables_that_keras_makes_in_the_first_step():
    model = compiled()
    model.compile("adam", "mse", metrics=["mae"])
    before = len(model.metrics_variables)
    _keras_internals.build_metrics(model, batch())
    after = len(model.metrics_variables)
    assert after > before, "Keras makes them in `compile` now: the function can go"
    model.fit(*batch(), verbose=0)
    assert len(model.metrics_variables) == after


@pytest.mark.usually("True")
@pytest.mark.parametrize("made_before", [False, True])
def test_awaits_first_step_tells_that_a_step_would_be_traced_twice(made_before):
    model, calls = compiled(), []
    model.compile("adam", "mse", metrics=["mae"])
    model.optimizer.build(model.trainable_variables)
    assert _keras_internals.awaits_first_step(model)
    if made_before:
        _keras_internals.build_metrics(model, batch())
        assert not _keras_internals.awaits_first_step(model)
    plain = model.train_step
    model.train_step = lambda data: calls.append(1) or plain(data)
    model.fit(*batch(), verbose=0)
    assert len(calls) == (1 if made_before else 2)


def test_has_plain_steps_knows_what_a_subclass_does_otherwise():
    class Other(keras.Model):
        def compute_loss(self, *args, **options):
            return 0

    assert _keras_internals.has_plain_steps(keras.Sequential)
    assert not _keras_internals.has_plain_steps(Other)


def test_merge_replicas_calls_once_with_the_strategy_and_the_arguments():
    seen = []
    _keras_internals.merge_replicas(lambda strategy, *args: seen.append((strategy, args)), 1, "a")
    assert seen == [(tf.distribute.get_strategy(), (1, "a"))]


# --- Several replicas, several workers ---------------------------------------------------------


class Stopped(Exception):  # noqa: N818
    pass


def model_under_a_strategy(**options):
    with tf.distribute.OneDeviceStrategy("CPU:0").scope():
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        model.compile(KO.SGD(0.1), "mse", metrics=["mae"], run_eagerly=True, **options)
    return model


X, Y = np.ones((5, 2), "float32"), np.zeros((5, 1), "float32")


def test_build_from_specs_makes_metrics_before_the_first_step():
    model = model_under_a_strategy()
    _keras_internals.build_from_specs(model)
    made = []

    def stop(data):
        made.extend(v.path for metric in model.metrics for v in metric.variables)
        raise Stopped

    model.test_step = stop
    batches = (batch for batch in [(X, Y)] * 3)
    with pytest.raises(Stopped):
        model.evaluate(batches, steps=3, verbose=0)
    assert any("mean_absolute_error" in path for path in made)


def test_wrap_steps_has_keras_run_both_steps_through_the_wrapper():
    model = model_under_a_strategy()
    assert not _keras_internals.steps_are_wrapped(model)
    ran = []

    def wrap(of, step):
        assert of is model
        return lambda data: (ran.append(step.__name__), step(data))[1]

    _keras_internals.wrap_steps(model, wrap)
    model.fit(X, Y, batch_size=5, verbose=0)
    model.evaluate(X, Y, batch_size=5, verbose=0)
    assert ran == ["train_step", "test_step"]


def test_steps_are_wrapped_only_for_the_model_itself():
    model, other = model_under_a_strategy(), model_under_a_strategy()
    _keras_internals.wrap_steps(model, lambda of, step: step)
    assert _keras_internals.steps_are_wrapped(model)
    assert not _keras_internals.steps_are_wrapped(other)


@pytest.mark.parametrize("factor", [0.0, 1.0, 2.0])
def test_weigh_loss_scales_what_gradients_are_taken_of(factor):
    model = model_under_a_strategy()
    before = model.get_weights()[0]
    _keras_internals.weigh_loss(model.optimizer, lambda loss: loss * factor)
    logs = model.train_on_batch(X, Y, return_dict=True)
    prediction = float(before.sum())
    assert logs["loss"] == pytest.approx(prediction**2, rel=1e-5), "what is logged stays"
    step = before - model.get_weights()[0]
    np.testing.assert_allclose(step, np.full((2, 1), 0.1 * 2 * prediction * factor), rtol=1e-4)


def test_weigh_loss_of_no_optimizer_is_nothing():
    _keras_internals.weigh_loss(None, lambda loss: loss)


def test_data_adapter_around_knows_the_batches_of_the_fit_in_progress():
    found = []

    class Look(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            found.append(_keras_internals.data_adapter_around(self))

    look = Look()
    model_under_a_strategy().fit(X, Y, batch_size=2, callbacks=[look], verbose=0)
    assert (found[0].batch_size, found[0].partial_batch_size) == (2, 1)
    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(2)
    model_under_a_strategy().fit(data, callbacks=[look], shuffle=False, verbose=0)
    assert found[1].batch_size is None
    assert found[1].get_tf_dataset() is data
    look.on_train_begin()
    assert found[2] is None


def test_is_multi_worker_says_no_to_a_single_process():
    # Two workers are in tests/workers.
    assert not _keras_internals.is_multi_worker(tf.distribute.get_strategy())
    assert not _keras_internals.is_multi_worker(tf.distribute.OneDeviceStrategy("CPU:0"))
