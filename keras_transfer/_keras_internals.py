"""Every private name of Keras that the package touches, one small function each.

Each function has a canary test in `tests/test_keras_internals.py` that fails when
Keras moves; nothing outside this file may read a private name of Keras or TensorFlow.
Seen in Keras 3.15.1 and TensorFlow 2.21.
"""

from __future__ import annotations

import contextlib
import random
import sys
import types
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras.src.backend.common import global_state as _global_state
from keras.src.models.functional import Functional
from keras.src.random import seed_generator as _seed_generator
from tensorflow.python.data.ops import dataset_ops as _dataset_ops
from tensorflow.python.eager import context as _eager_context
from tensorflow.python.framework import convert_to_constants, op_def_registry
from tensorflow.python.ops import stateful_random_ops as _stateful_random_ops

# --- Layers and variables -----------------------------------------------------------------


def flatten_layers(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    """Returns `layer` and all layers inside it, parents before their children."""
    ordered: list[keras.layers.Layer] = []
    seen: set[int] = set()
    stack = [layer]
    while stack:
        current = stack.pop()
        if id(current) in seen:
            continue
        seen.add(id(current))
        ordered.append(current)
        # Keras's own `_flatten_layers` reverses siblings; here they keep their order.
        stack.extend(reversed(list(current._layers)))
    return ordered


def own_trainable_variables(layer: keras.layers.Layer) -> list[keras.Variable]:
    """Returns the layer's own variables that may train, whatever their flags say now.

    The store is filled when a variable is made, so a frozen layer's kernel stays in it.
    The kernel under a LoRA update is left out: Keras froze it for good, and setting
    `layer.trainable = True` would silently thaw it.
    """
    frozen = {id(v) for v in kernels_under_lora(layer)}
    variables = [v for v in layer._trainable_variables if id(v) not in frozen]
    return [v for v in variables if keras.backend.is_float_dtype(v.dtype)]


def kernels_under_lora(layer: keras.layers.Layer) -> list[keras.Variable]:
    """Returns the variables of `layer` that `enable_lora` froze for good."""
    if not getattr(layer, "lora_enabled", False):
        return []
    kept = (getattr(layer, name, None) for name in ("_kernel", "_embeddings"))
    return [variable for variable in kept if variable is not None]


def accepts_training(operation: Any) -> bool:
    """Whether the operation's `call` takes a `training` argument."""
    return bool(getattr(operation, "_call_has_training_arg", False))


def is_random(layer: keras.layers.Layer) -> bool:
    """Whether the layer itself (not one inside it) draws random numbers, as dropout does."""
    return bool(layer._seed_generators)


def unlock_state(layer: keras.layers.Layer) -> None:
    """Lets a built layer be given further weights, layers and metrics."""
    layer._tracker.unlock()


def set_mask(tensor: Any, mask: Any) -> None:
    """Puts a mask on a tensor, as a masking layer does."""
    tensor._keras_mask = mask


# --- The graph of a functional model --------------------------------------------------------


def operation_of(tensor: keras.KerasTensor) -> Any:
    """Returns the layer or operation that a functional model's symbolic tensor comes from."""
    return tensor._keras_history.operation


def functional_of(model: Any) -> Functional | None:
    """Returns the functional model that `model` is or (Sequential) holds, else `None`.

    A functional model whose subclass overrides `call` does not run its graph as it
    stands, so it counts as not functional.
    """
    if isinstance(model, keras.Sequential):
        if type(model).call is not keras.Sequential.call:
            return None
        return model._functional
    if isinstance(model, Functional) and type(model).call is Functional.call:
        return model
    return None


def graph_nodes(functional: Functional) -> Iterator[Any]:
    """Yields the nodes of the graph in the order in which Keras runs them."""
    for depth in sorted(functional._nodes_by_depth, reverse=True):
        for node in functional._nodes_by_depth[depth]:
            if node.operation and not node.is_input:
                yield node


def graph_inputs(functional: Functional) -> list[Any]:
    """Returns the symbolic input tensors, flat."""
    return list(functional._inputs)


def graph_outputs(functional: Functional) -> list[Any]:
    """Returns the symbolic output tensors, flat."""
    return list(functional._outputs)


def standardize_inputs(functional: Functional, inputs: Any) -> list[Any]:
    """Converts inputs as `Functional.call` does: structure, dtype, rank; flat, masks kept."""
    return list(functional._standardize_inputs(inputs))


def fill_in_arguments(
    arguments: Any, values: dict[int, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Returns a node's arguments with values for its symbolic tensors, keyed by `id`."""
    args, kwargs = arguments.fill_in(values)
    return tuple(args), dict(kwargs)


def pack_outputs(functional: Functional, outputs: list[Any]) -> Any:
    """Gives flat outputs the structure that calling the model returns."""
    packed = keras.tree.pack_sequence_as(functional._outputs_struct, outputs)
    if isinstance(packed, list | tuple) and len(packed) == 1:
        return packed[0]
    return packed


def call_in_context(
    layer: keras.layers.Layer, call: Callable[[], Any], *, training: bool | None
) -> Any:
    """Runs `call` as if inside `layer`, so that inner layers inherit `training`.

    A layer without a `training` argument of its own takes the value of the layer around
    it for the layers inside it; walking a graph by hand would otherwise leave them the
    value of the whole model.
    """
    context = layer._get_call_context()
    outer = context.get_value("training")
    context.set_value("training", training)
    try:
        return call()
    finally:
        context.set_value("training", outer)


# --- Training -----------------------------------------------------------------------------


def set_optimizer(model: keras.Model, optimizer: keras.optimizers.Optimizer) -> None:
    """Replaces a compiled model's optimizer without recompiling.

    Recompiling would reset the metrics and drop the train function. The compile config
    follows, so that a saved model is loaded with the optimizer whose state it holds.
    """
    model.optimizer = optimizer
    model._compile_config.config["optimizer"] = optimizer


def sync_compiled_trainable_state(model: keras.Model) -> None:
    """Tells Keras that the current flags are meant, so that it does not warn about them.

    In 3.15 the check stands after a `raise` and never runs; once that is mended it would
    warn after every stage change.
    """
    model._compiled_trainable_state = {layer: layer.trainable for layer in model._flatten_layers()}


def metric_direction(model: keras.Model, name: str) -> str | None:
    """Returns `"up"` or `"down"`, where Keras knows which way a metric improves, else `None`."""
    found: list[Any] = []
    for metric in model.metrics:
        # Several metrics lie in one container, which is itself a metric.
        found += getattr(metric, "metrics", None) or [metric]
    for metric in found:
        if metric.name == name and hasattr(metric, "_direction"):
            return "up" if metric._direction == "up" else "down"
    return None


# --- Optimizers ---------------------------------------------------------------------------


def step_counter(optimizer: keras.optimizers.Optimizer) -> keras.Variable:
    """Returns the counter of `apply` calls; `iterations` may be a quotient of it."""
    return optimizer._iterations


def rate_source(optimizer: keras.optimizers.Optimizer) -> Any:
    """Returns where the rate comes from: a variable, a schedule or another callable."""
    return optimizer._learning_rate


def known_variables(optimizer: keras.optimizers.Optimizer) -> list[keras.Variable]:
    """Returns the variables that the optimizer was built with, in its order."""
    return list(optimizer._trainable_variables)


def set_known_variables(
    optimizer: keras.optimizers.Optimizer,
    variables: list[keras.Variable],
    averages: list[keras.Variable | None] | None,
) -> None:
    """Tells Keras which variables train from now on, and which averages belong to them.

    `object.__setattr__` goes past the optimizer's attribute tracker, which would count
    the model's variables among the optimizer's own.
    """
    indices = {optimizer._var_key(v): i for i, v in enumerate(variables)}
    object.__setattr__(optimizer, "_trainable_variables", list(variables))
    object.__setattr__(optimizer, "_trainable_variables_indices", indices)
    if averages is not None:
        object.__setattr__(optimizer, "_model_variables_moving_average", list(averages))


def variable_key(optimizer: keras.optimizers.Optimizer, variable: Any) -> Any:
    """Returns Keras's key of a variable: the same for all replicas' copies of it."""
    return optimizer._var_key(variable)


def moving_averages(optimizer: keras.optimizers.Optimizer) -> list[keras.Variable | None]:
    """Returns the averages (`use_ema`) of a built optimizer, in its variables' order."""
    return list(getattr(optimizer, "_model_variables_moving_average", []))


def gradient_accumulators(optimizer: keras.optimizers.Optimizer) -> list[keras.Variable]:
    """Returns the accumulated gradients of a built optimizer, in its variables' order."""
    return list(getattr(optimizer, "_accumulated_gradients", []))


_NOT_SLOTS = {
    "_variables",
    "_trainable_variables",
    "_model_variables_moving_average",
    "_accumulated_gradients",
}


def optimizer_slots(
    optimizer: keras.optimizers.Optimizer,
) -> dict[str, list[keras.Variable | None]]:
    """Returns a built optimizer's state by variable: attribute name -> one slot per variable.

    Keras's optimizers keep a slot as a list as long as the list of variables, and so do
    those that follow its guide; `None` stands where a variable has no such slot (Muon).
    """
    length = len(optimizer._trainable_variables)
    slots = {}
    for name, value in vars(optimizer).items():
        if name in _NOT_SLOTS or not isinstance(value, list) or len(value) != length:
            continue
        if any(isinstance(v, keras.Variable) for v in value) and all(
            v is None or isinstance(v, keras.Variable) for v in value
        ):
            slots[name] = list(value)
    return slots


def optimizer_shared_state(
    optimizer: keras.optimizers.Optimizer,
) -> dict[str, keras.Variable]:
    """Returns state that is kept once for all variables, besides counter and rate (Nadam)."""
    return {
        name: value
        for name, value in vars(optimizer).items()
        if isinstance(value, keras.Variable) and name not in ("_iterations", "_learning_rate")
    }


def weight_decay_exclusions(optimizer: keras.optimizers.Optimizer) -> tuple[set[Any], Any]:
    """Returns what `exclude_from_weight_decay` was told: variable keys and a compiled pattern."""
    return (
        set(getattr(optimizer, "_exclude_from_weight_decay", ())),
        getattr(optimizer, "_exclude_from_weight_decay_pattern", None),
    )


def set_weight_decay_exclusions(
    optimizer: keras.optimizers.Optimizer, keys: set[Any], pattern: Any
) -> None:
    """Gives an optimizer, built or not, the exclusions of another."""
    object.__setattr__(optimizer, "_exclude_from_weight_decay", set(keys))
    object.__setattr__(optimizer, "_exclude_from_weight_decay_pattern", pattern)
    object.__setattr__(optimizer, "_exclude_from_weight_decay_cache", {})


def decays(optimizer: keras.optimizers.Optimizer, variable: keras.Variable) -> bool:
    """Whether the optimizer's decoupled weight decay reaches the variable."""
    # Keras on TensorFlow matches `var_names` against the name of the `tf.Variable`.
    return bool(optimizer._use_weight_decay(getattr(variable, "value", variable)))


def skip_all_reduce(optimizer: keras.optimizers.Optimizer) -> None:
    """Makes an optimizer take gradients as already summed over the replicas."""
    object.__setattr__(optimizer, "_all_reduce_sum_gradients", lambda pairs: pairs)


def decay_weights(optimizer: keras.optimizers.Optimizer, variables: list[keras.Variable]) -> None:
    """Applies the optimizer's decoupled weight decay to `variables`, at its learning rate."""
    optimizer._apply_weight_decay(variables)


def update_variables(
    optimizer: keras.optimizers.Optimizer,
    gradients: list[Any],
    variables: list[keras.Variable],
    learning_rate: Any,
) -> None:
    """Runs the optimizer's update alone: no clipping, no averages, no counting."""
    optimizer._backend_update_step(gradients, variables, learning_rate)


def overrides_apply(optimizer: keras.optimizers.Optimizer) -> str | None:
    """Returns the name of a method around `update_step` that the class replaces, or `None`."""
    base = keras.optimizers.Optimizer
    names = ("apply", "_backend_apply_gradients", "_clip_gradients", "_filter_empty_gradients")
    for name in names:
        if getattr(type(optimizer), name) is not getattr(base, name):
            return name
    return None


def save_inner_state_once(optimizer: keras.optimizers.LossScaleOptimizer) -> None:
    """Makes a `LossScaleOptimizer` save and load only what is its own, by number.

    Keras saves the inner optimizer's variables twice: numbered among the outer's, and in a
    place of the inner's own. The first cannot be loaded where other variables train. A file
    that Keras wrote begins with the same variables, so it is loaded too.
    """

    def save(store: Any) -> None:
        for number, variable in enumerate(optimizer._variables):
            store[str(number)] = variable.numpy()

    def load(store: Any) -> None:
        if not optimizer.built:
            warnings.warn(
                f"The loss scale of {optimizer.name!r} is not loaded, because the optimizer is not "
                "built yet. Call `optimizer.build(model.trainable_variables)` before loading.",
                stacklevel=2,
            )
            return
        for number, variable in enumerate(optimizer._variables):
            variable.assign(store[str(number)])

    object.__setattr__(optimizer, "save_own_variables", save)
    object.__setattr__(optimizer, "load_own_variables", load)


def save_inner_state_twice(optimizer: keras.optimizers.LossScaleOptimizer) -> None:
    """Undoes `save_inner_state_once`."""
    for name in ("save_own_variables", "load_own_variables"):
        vars(optimizer).pop(name, None)


def check_finite_on_all_replicas(optimizer: keras.optimizers.LossScaleOptimizer) -> None:
    """Has a `LossScaleOptimizer` skip a step if gradients overflow on any replica.

    Keras looks at the first replica's own gradients, as if they were summed already: an
    overflow on another replica goes into the weights.
    """
    check: Any = type(optimizer).check_finite

    def check_all(grads: Any) -> Any:
        finite = check(optimizer, grads)
        replica = tf.distribute.get_replica_context()
        if replica is None or replica.num_replicas_in_sync == 1:
            return finite
        overflows = tf.cast(tf.logical_not(finite), tf.float32)
        return tf.equal(replica.all_reduce(tf.distribute.ReduceOp.SUM, overflows), 0.0)

    object.__setattr__(optimizer, "check_finite", check_all)


def check_finite_as_keras_does(optimizer: keras.optimizers.LossScaleOptimizer) -> None:
    """Undoes `check_finite_on_all_replicas`."""
    vars(optimizer).pop("check_finite", None)


def merge_replicas(function: Callable[..., Any], *args: Any) -> Any:
    """Calls `function(strategy, *args)` once for all replicas, where they must meet to write."""
    return tf.__internal__.distribute.interim.maybe_merge_call(
        function, tf.distribute.get_strategy(), *args
    )


def needs_merge_call() -> bool:
    """Whether replicas must meet (`merge_call`) before they may write to shared variables."""
    return not tf.__internal__.distribute.strategy_supports_no_merge_call()


# --- Weights by name -------------------------------------------------------------------------


def child_layers(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    """Returns the layers that `layer` holds directly, in the order they were attached."""
    return list(layer._layers)


def saved_variables(layer: keras.layers.Layer) -> list[keras.Variable]:
    """Returns the layer's own variables in the order that weights files number them."""
    return [*layer._trainable_variables, *layer._non_trainable_variables]


# --- Runs that leave no trace (the LR range test) --------------------------------------------


def compiled_trainable_state(model: keras.Model) -> dict[Any, bool] | None:
    """Returns the flags that Keras remembers from `compile`."""
    state = getattr(model, "_compiled_trainable_state", None)
    return None if state is None else dict(state)


def set_compiled_trainable_state(model: keras.Model, state: dict[Any, bool] | None) -> None:
    """Puts back what `compiled_trainable_state` returned."""
    if state is not None:
        model._compiled_trainable_state = state


def build_symbolically(model: keras.Model, batch: Any) -> None:
    """Makes metrics and optimizer state before the first step, where a strategy needs that."""
    model._maybe_symbolic_build(data_batch=batch)


def shared_generators(make: Collection[str] = ()) -> dict[str, Any]:
    """Returns the states of the generators behind all random calls without a generator.

    Args:
        make: Names of those to make where they do not exist yet; a first call would.

    Returns:
        Variables by name: `"keras"` of `keras.random`, `"tensorflow"` of
        `tf.random.get_global_generator`.
    """
    of_keras = _global_state.get_global_attribute(_seed_generator.GLOBAL_SEED_GENERATOR)
    if of_keras is None and "keras" in make:
        of_keras = _seed_generator.global_seed_generator()
    of_tensorflow = _stateful_random_ops.global_generator
    if of_tensorflow is None and "tensorflow" in make:
        of_tensorflow = tf.random.get_global_generator()
    found = {"keras": of_keras, "tensorflow": of_tensorflow}
    return {name: one.state for name, one in found.items() if one is not None}


_SEED_APART = 0x2C1B3C6D  # any number that no user would choose


@contextlib.contextmanager
def random_numbers_apart() -> Iterator[None]:
    """Whatever draws random numbers inside leaves those drawn afterwards as they would be.

    Python's and NumPy's generators, Keras's one for all unseeded calls and TensorFlow's
    global generator are put back. The state of TensorFlow's older operations
    (`tf.random.uniform`) cannot be: it lies in kernels, which are found by their seeds. So
    these get another global seed inside, and with it kernels of their own. What stays out
    of reach is such an operation in a `tf.function` that was traced before.
    """
    context = _eager_context.context()
    seed, of_operations = context._seed, getattr(context, "_rng", None)
    python, numpy = random.getstate(), np.random.get_state()
    of_keras = _global_state.get_global_attribute(_seed_generator.GLOBAL_SEED_GENERATOR)
    # Copies: on a CPU, `numpy()` may show the variable's own memory.
    states = [(s, np.array(s.numpy(), copy=True)) for s in shared_generators().values()]
    # Not `tf.random.set_seed`, which clears all kernels, and so sets back their states.
    context._seed = _SEED_APART if seed is None else int(seed) ^ _SEED_APART
    context._rng = random.Random(context._seed)
    try:
        yield
    finally:
        context._seed, context._rng = seed, of_operations
        random.setstate(python)
        np.random.set_state(numpy)
        _global_state.set_global_attribute(_seed_generator.GLOBAL_SEED_GENERATOR, of_keras)
        for variable, state in states:
            variable.assign(state)


def with_own_shuffles(dataset: tf.data.Dataset, *, max_bytes: int = 2**26) -> tf.data.Dataset:
    """Copies a data set, so that reading the copy does not advance the original's shuffles.

    A `shuffle` draws its next order when the data set is opened, from a generator that all
    iterators of the data set share, and that nothing can set back. The copy has generators
    of its own, with the same seeds. Arrays that the data set holds are copied too, slowly
    (1 GB in a minute), so beyond `max_bytes`, and where a copy cannot be made, the data set
    itself is returned.
    """
    sources = [dataset]
    for source in sources:
        sources.extend(source._inputs())
    if not any("Shuffle" in type(source).__name__ for source in sources):
        return dataset
    tensors = [t for source in sources for t in getattr(source, "_tensors", [])]
    functions = [f.function for source in sources for f in source._functions()]
    tensors += [t for f in functions for t in f.captured_inputs if t.shape.is_fully_defined()]
    held = sum(int(np.prod(t.shape)) * t.dtype.size for t in tensors)
    if held > max_bytes:
        return dataset
    try:
        serialized = dataset._as_serialized_graph().numpy()
        graph = tf.compat.v1.GraphDef.FromString(serialized)
        nodes = {node.name: node for node in graph.node}
        for node in graph.node:
            if not node.op.startswith("Shuffle"):
                continue
            for name in node.input:
                shared = nodes[name.split(":")[0]]
                is_const = shared.op == "Const"
                if is_const and shared.attr["dtype"].type == tf.resource.as_datatype_enum:
                    shared.op = "DummySeedGenerator"
                    shared.ClearField("attr")
        variant = tf.raw_ops.DatasetFromGraph(graph_def=graph.SerializeToString())
        return _dataset_ops._VariantDataset(variant, dataset.element_spec)
    except tf.errors.OpError:
        return dataset


# --- Cached features ------------------------------------------------------------------------


def get_mask(tensor: Any) -> Any:
    """Returns the mask that rides on a tensor, or `None`."""
    return getattr(tensor, "_keras_mask", None)


def take_losses_of_call(layer: keras.layers.Layer) -> bool:
    """Whether the last call of a layer added losses, in it or inside it; they are cleared."""
    found = any(inner._losses for inner in flatten_layers(layer))
    layer._clear_losses()
    return found


def take_initial_epoch(model: keras.Model) -> int | None:
    """Returns the epoch at which a callback (`BackupAndRestore`) says to start, and forgets it.

    Keras never clears it, so that a later `fit` on the same model would start there again.
    """
    epoch = model._initial_epoch
    model._initial_epoch = None
    return None if epoch is None else int(epoch)


def set_initial_epoch(model: keras.Model, epoch: int | None) -> None:
    """Tells a `fit` whose callbacks are beginning at which epoch to start."""
    model._initial_epoch = epoch


def unsafe_operations(graph: Any, safe: Collection[str]) -> list[str]:
    """Returns the operations of a function's graph that keep state or draw random numbers.

    Args:
        graph: The graph of a `tf.function`, the functions that it calls included.
        safe: Operations with state that are fine all the same.
    """
    definition = graph.as_graph_def()
    nodes = list(definition.node)
    for function in definition.library.function:
        nodes += function.node_def
    found = []
    for node in nodes:
        known = op_def_registry.get(node.op)
        stateful = known is not None and known.is_stateful and node.op not in safe
        if (stateful or "Random" in node.op) and node.op not in found:
            found.append(node.op)
    # A placeholder for a function's argument counts as stateful in some versions.
    return [name for name in found if name not in ("Placeholder", "_Arg", "_Retval")]


def operations(graph: Any) -> list[Any]:
    """Returns the operations of a function's graph, without those of functions that it calls."""
    return list(graph.get_operations())


def captured_tensors(graph: Any) -> list[Any]:
    """Returns the tensors that stand in a function's graph for values from outside of it."""
    return list(graph.internal_captures)


def captured_values(graph: Any, names: Sequence[str]) -> list[np.ndarray]:
    """Returns what stands behind captured tensors: values of tensors, and of variables.

    Args:
        graph: The graph of a `tf.function`.
        names: Names of tensors in it, as `captured_tensors` has them.
    """
    outside = {inside.name: value for value, inside in graph.captures}
    values = []
    for name in names:
        value = outside[name]
        if value.dtype == tf.resource:
            # A variable is known to the graph by its handle only.
            dtype = value._handle_data.shape_and_type[0].dtype
            value = tf.raw_ops.ReadVariableOp(resource=value, dtype=dtype)
        values.append(np.asarray(value))
    return values


def dataset_inputs(dataset: tf.data.Dataset) -> list[tf.data.Dataset]:
    """Returns the data sets that a data set reads from."""
    return list(dataset._inputs())


def dataset_graphs(dataset: tf.data.Dataset) -> list[Any]:
    """Returns the graphs of the functions of a data set's last transformation."""
    return [function.function.graph for function in dataset._functions()]


def dataset_attribute(dataset: tf.data.Dataset, name: str) -> Any:
    """Returns what a transformation was told (`reshuffle_each_iteration`), or `None`."""
    value: Any = getattr(dataset, f"_{name}", None)
    return value.numpy() if tf.is_tensor(value) else value


def convert_variables(concrete: Any) -> Any:
    """Returns a concrete function with constants for variables, flat inputs and outputs.

    There is no public way to do this for a function in memory.
    """
    return convert_to_constants.convert_variables_to_constants_v2(concrete)


def build_metrics(model: keras.Model, batch: Any) -> None:
    """Makes the variables of metrics and losses, which Keras makes in the first step.

    Args:
        model: A compiled model.
        batch: A batch as `fit` reads it: inputs, targets, sample weights.
    """
    with model.distribute_strategy.scope():
        model._symbolic_build(data_batch=batch)


def awaits_first_step(model: keras.Model) -> bool:
    """Whether a compiled model has metrics whose variables are not there yet."""
    metrics = model._compile_metrics
    return metrics is not None and not metrics.built


def has_plain_steps(kind: type[keras.Model]) -> bool:
    """Whether a class of models trains, and computes loss and metrics, as Keras does."""
    names = ("train_step", "compute_loss", "_compute_loss", "compute_metrics")
    return all(getattr(kind, name) is getattr(keras.Model, name) for name in names)


# --- Callbacks ------------------------------------------------------------------------------

# What Keras's callbacks change while they run, by class.
_CALLBACK_STATE: dict[type, tuple[str, ...]] = {
    keras.callbacks.EarlyStopping: (
        "best",
        "best_epoch",
        "best_weights",
        "stopped_epoch",
        "wait",
    ),
    keras.callbacks.ReduceLROnPlateau: ("best", "cooldown_counter", "wait"),
    keras.callbacks.ModelCheckpoint: (
        "best",
        "_batches_seen_since_last_saving",
        "_current_epoch",
        "_last_batch_seen",
    ),
    keras.callbacks.History: ("epoch", "history"),
    keras.callbacks.TensorBoard: ("_global_train_batch", "_global_test_batch"),
    keras.callbacks.SwapEMAWeights: ("_ema_weights_in_model",),
    keras.callbacks.CSVLogger: ("keys",),
    keras.callbacks.LambdaCallback: (),
    keras.callbacks.LearningRateScheduler: (),
    keras.callbacks.ProgbarLogger: (),
    keras.callbacks.RemoteMonitor: (),
    keras.callbacks.TerminateOnNaN: (),
}


def callback_state(callback: keras.callbacks.Callback) -> dict[str, Any] | None:
    """Returns what one of Keras's callbacks has changed since training began.

    Returns:
        The values by name, or `None` if the callback's class is none of Keras's, nor derived
        from one.
    """
    for known in type(callback).__mro__:
        if known in _CALLBACK_STATE:
            names = _CALLBACK_STATE[known]
            return {name: getattr(callback, name) for name in names if hasattr(callback, name)}
    return None


def is_callback_of_keras(callback: keras.callbacks.Callback) -> bool:
    """Whether the callback's own class, not one that it derives from, is Keras's."""
    return type(callback) in _CALLBACK_STATE


def callback_list_around(
    callback: keras.callbacks.Callback,
) -> keras.callbacks.CallbackList | None:
    """Returns the list whose hook is calling `callback` right now.

    Keras tells a callback its model and its parameters, not the callbacks beside it; the
    list is found among the callers.
    """
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, keras.callbacks.CallbackList) and any(
            one is callback for one in caller.callbacks
        ):
            return caller
        frame = frame.f_back
    return None


# --- Several replicas, several workers ---------------------------------------------------------


def build_from_specs(model: keras.Model) -> None:
    """Has `fit` and `evaluate` make metrics from what the data says of its batches.

    Keras reads a batch (one that a generator has lost) and takes the mean of the replicas'
    shares, which fails where they differ in size, and on several workers always.
    """

    def of_a_replica(spec: Any) -> Any:
        spec = getattr(spec, "_value_specs", (spec,))[0]
        return None if isinstance(spec, tf.OptionalSpec) else spec

    def build(self: keras.Model, iterator: Any = None, data_batch: Any = None) -> None:
        if iterator is not None:
            specs = iterator._distributed_dataset.element_spec
            data_batch = keras.tree.map_structure(of_a_replica, specs)
        build_metrics(self, data_batch)

    object.__setattr__(model, "_maybe_symbolic_build", types.MethodType(build, model))


def wrap_steps(
    model: keras.Model, wrap: Callable[[keras.Model, Callable[..., Any]], Callable[..., Any]]
) -> None:
    """Has Keras trace `wrap(model, step)` in the place of the model's train and test steps.

    Steps that a subclass overrides are wrapped as well, which a `train_step` of ours would
    not be able to do.
    """

    def make(self: keras.Model, step: Callable[..., Any]) -> Any:
        return type(self)._make_function(self, wrap(self, step))

    object.__setattr__(model, "_make_function", types.MethodType(make, model))
    # What was traced before is not wrapped.
    model.train_function = None
    model.test_function = None


def weigh_loss(optimizer: keras.optimizers.Optimizer | None, weigh: Callable[[Any], Any]) -> None:
    """Has `optimizer.scale_loss`, which Keras calls before it takes gradients, call `weigh` too."""
    if optimizer is None:
        return
    scale: Any = type(optimizer).scale_loss
    object.__setattr__(optimizer, "scale_loss", lambda loss: scale(optimizer, weigh(loss)))


def steps_are_wrapped(model: keras.Model) -> bool:
    """Whether `wrap_steps` was called for this model."""
    return "_make_function" in vars(model)


def data_adapter_around(callback: keras.callbacks.Callback) -> Any:
    """Returns what reads the data in the `fit` that is calling `callback`, or `None`.

    It has `batch_size` and `partial_batch_size`, which are `None` where Keras does not know, and
    `get_tf_dataset()`.
    """
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None:
        iterator = frame.f_locals.get("epoch_iterator")
        if iterator is not None and frame.f_locals.get("self") is callback.model:
            return iterator.data_adapter
        frame = frame.f_back
    return None


def is_multi_worker(strategy: tf.distribute.Strategy) -> bool:
    """Whether the strategy spans several processes."""
    multi_worker = tf.distribute.MultiWorkerMirroredStrategy
    return isinstance(strategy, multi_worker) and strategy.extended._in_multi_worker_mode()
