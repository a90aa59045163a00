"""The one place that changes what trains: flags, optimizer slots, train function.

Keras traces the train step with the list of variables that train at that moment. Setting
`layer.trainable` later changes nothing and warns of nothing, and an optimizer that was
built on the head alone refuses the first step that brings it more. So a change is always
these three steps, in this order, inside the model's strategy scope.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import keras

from keras_transfer import _checks, _keras_internals
from keras_transfer._layer_variables import NORMALIZATION_LAYERS, variables_that_may_train
from keras_transfer.layer_groups import LayerGroup, LayerGroups
from keras_transfer.optimizers import DiscriminativeOptimizer, find_discriminative
from keras_transfer.plan import Stage

BIAS_NAMES = ("bias", "beta")


def groups_of_stage(stage: Stage, groups: LayerGroups) -> list[LayerGroup]:
    """Returns the layer groups of which the stage trains at least a part.

    Raises:
        ValueError: If the stage asks for more groups than there are, or for unknown ones.
    """
    if stage.depth is not None:
        if stage.depth == "all":
            return list(groups)
        depth = int(stage.depth)
        if depth > len(groups):
            raise ValueError(
                f"Stage {stage.name!r} trains the top {depth} layer groups, but the model has "
                f"{len(groups)}. Lower `depth`, or split the backbone into more groups."
            )
        return list(groups[-depth:])
    if stage.train in ("all", "bias", "norm"):
        return list(groups)
    assert stage.train is not None
    try:
        return groups.select(stage.train)
    except ValueError as error:
        raise ValueError(f"Stage {stage.name!r}: {error}") from None


def variables_of_stage(
    stage: Stage, groups: LayerGroups, always_frozen: Iterable[keras.Variable] = ()
) -> list[keras.Variable]:
    """Resolves a stage to the variables that train while it runs.

    Args:
        stage: The stage.
        groups: The model's layer groups.
        always_frozen: Variables that no stage trains.

    Raises:
        ValueError: If the stage names what the model does not have, or nothing would train.
    """
    kept = {id(v) for v in always_frozen}
    if stage.train in ("bias", "norm"):
        found = _variables_of_kind(stage, groups, kept)
    else:
        found = [v for group in groups_of_stage(stage, groups) for v in group.variables]
    chosen = {id(v) for v in found if id(v) not in kept}
    if not chosen:
        raise ValueError(
            f"Stage {stage.name!r} trains no variable of the model. Received: "
            f"depth={stage.depth!r}, train={stage.train!r}"
        )
    return [v for v in groups.variables if id(v) in chosen]


def _variables_of_kind(stage: Stage, groups: LayerGroups, kept: set[int]) -> list[keras.Variable]:
    """Returns the biases, or scales and offsets, of all groups, and all of the head."""
    head = groups[-1].variables if groups.has_head else []
    backbone = groups[:-1] if groups.has_head else groups
    if stage.train == "norm":
        found = [v for group in backbone for v in _normalization_variables(group)]
        kind = "scales and offsets of normalization layers"
    else:
        found = [v for group in backbone for v in group.variables if _is_bias(v)]
        kind = "biases"
    if all(id(v) in kept for v in found):
        why = "it has none" if not found else "batch_norm='freeze' keeps all that it has"
        remedy = "Choose another `train`" if not found else "Choose another `batch_norm`"
        raise ValueError(
            f"Stage {stage.name!r} trains the {kind} of the backbone (train={stage.train!r}), but "
            f"{why}, so the head alone would train. {remedy}, or write depth=1."
        )
    return [*found, *head]


def _is_bias(variable: keras.Variable) -> bool:
    return variable.name in BIAS_NAMES or variable.name.endswith("_bias")


def _normalization_variables(group: LayerGroup) -> list[keras.Variable]:
    return [
        variable
        for layer in group.all_layers
        if _is_normalization(layer)
        for variable in _keras_internals.own_trainable_variables(layer)
    ]


def _is_normalization(layer: keras.layers.Layer) -> bool:
    # By name as well: layers of other packages derive from no class of Keras's.
    is_named_so = "Normalization" in type(layer).__name__
    return is_named_so or isinstance(layer, NORMALIZATION_LAYERS)


def still_layers(
    train: Iterable[keras.Variable],
    groups: LayerGroups,
    frozen: Iterable[keras.layers.Layer] = (),
) -> list[keras.layers.Layer]:
    """Returns the BatchNorms whose statistics must not move, though no variable says so.

    A BatchNorm without scale and offset has no variable that could be frozen. It follows its
    group: it is still while no variable of the group trains.

    Args:
        train: The variables that train.
        groups: The model's layer groups.
        frozen: BatchNorms that are still whatever trains.
    """
    training = {id(v) for v in train}
    kept = {id(layer) for layer in frozen}
    still: dict[int, keras.layers.Layer] = {}
    for group in groups:
        trains = any(id(v) in training for v in group.variables)
        for layer in group.all_layers:
            if (
                isinstance(layer, keras.layers.BatchNormalization)
                and not _keras_internals.own_trainable_variables(layer)
                and (id(layer) in kept or not trains)
            ):
                still[id(layer)] = layer
    return list(still.values())


def layers_still_now(model: keras.Model) -> list[keras.layers.Layer]:
    """Returns the layers without variables that are frozen as things stand."""
    layers = _keras_internals.flatten_layers(model)
    return [la for la in layers if not la.trainable and not variables_that_may_train([la])]


def set_flags(
    model: keras.Model,
    train: Sequence[keras.Variable],
    still: Iterable[keras.layers.Layer] = (),
) -> bool:
    """Makes exactly `train` the trainable variables of `model`; returns whether that changed.

    Args:
        model: A built model.
        train: The variables that train from now on.
        still: Layers without such variables that are frozen; see `still_layers`.

    Both kinds of flags are set, both ways. A layer's flag alone cannot train a bias without
    its kernel, and a variable's alone leaves the layer out of `trainable_variables`, and a
    BatchNorm reads its own layer's flag to decide whether its statistics move.
    """
    before = {id(v) for v in model.trainable_variables}
    wanted = {id(v) for v in train}
    layers = _keras_internals.flatten_layers(model)
    inside = [_keras_internals.flatten_layers(layer) for layer in layers]
    # Setting a layer's flag sets those inside it too, so what holds more comes first. (The
    # order in which layers are found is not enough: one may lie inside two others.)
    for layer, inner in sorted(zip(layers, inside, strict=True), key=lambda pair: -len(pair[1])):
        below = variables_that_may_train(inner)
        # A layer without such variables was perhaps still in the stage before.
        layer.trainable = not below or any(id(v) in wanted for v in below)
    for layer in layers:
        for variable in _keras_internals.own_trainable_variables(layer):
            variable.trainable = id(variable) in wanted
    for layer in still:
        layer.trainable = False
    _freeze_kernels_under_lora(layers)
    _keras_internals.sync_compiled_trainable_state(model)
    return {id(v) for v in model.trainable_variables} != before


def _freeze_kernels_under_lora(layers: Iterable[keras.layers.Layer]) -> None:
    for layer in layers:
        for variable in _keras_internals.kernels_under_lora(layer):
            variable.trainable = False


def adopt_optimizer(model: keras.Model, groups: LayerGroups) -> DiscriminativeOptimizer:
    """Gives `model` an optimizer with per-group rates and step counters, state kept.

    A plain optimizer is taken over with its slots; one that is discriminative already is
    used as it is.
    """
    _check_rate(model.optimizer)
    with model.distribute_strategy.scope():
        optimizer = find_discriminative(model.optimizer)
        if optimizer is None:
            _keras_internals.set_optimizer(
                model, DiscriminativeOptimizer.take_over(model.optimizer)
            )
            optimizer = find_discriminative(model.optimizer)
            assert optimizer is not None
        else:
            # Under `mixed_float16`, `compile` has put a `LossScaleOptimizer` around it.
            DiscriminativeOptimizer.take_over(model.optimizer)
        optimizer.set_groups(groups.by_name())
        # A plan that was interrupted has not put them back itself.
        optimizer.set_stage_multipliers(None)
    return optimizer


def _check_rate(optimizer: keras.optimizers.Optimizer) -> None:
    # Keras takes NaN and negative numbers in an assignment without a word.
    rate = _keras_internals.rate_source(getattr(optimizer, "inner_optimizer", optimizer))
    if isinstance(rate, keras.Variable):
        _checks.number(float(rate.numpy()), "learning_rate", minimum=0)


def trainable_by_layer(model: keras.Model) -> list[keras.Variable]:
    """Returns what would train if layers had flags and single variables had none."""
    layers = _keras_internals.flatten_layers(model)
    never = {id(v) for layer in layers for v in _keras_internals.kernels_under_lora(layer)}
    trains = {
        id(variable)
        for layer in layers
        if layer.trainable
        for variable in _keras_internals.own_trainable_variables(layer)
    }
    return [v for v in model.variables if id(v) in trains - never]


def give_back_optimizer(model: keras.Model) -> None:
    """Gives `model` its stock optimizer class back, with its slots."""
    optimizer = find_discriminative(model.optimizer)
    if optimizer is None:
        return
    # A file of a stock model keeps one flag for each layer: the optimizer in it has to know all
    # that trains under these. (Where it keeps averages, Keras allows no more than what trains.)
    variables = None if optimizer.use_ema else trainable_by_layer(model)
    with model.distribute_strategy.scope():
        plain = DiscriminativeOptimizer.give_back(model.optimizer, variables)
        _keras_internals.set_optimizer(model, plain)
    model.make_train_function(force=True)


def apply(
    model: keras.Model,
    train: Sequence[keras.Variable],
    still: Iterable[keras.layers.Layer] = (),
    *,
    retrace: bool = False,
) -> bool:
    """Makes exactly `train` train from the next step on, within a running `fit` too.

    Args:
        model: A compiled model whose optimizer was adopted.
        train: The variables that train from now on.
        still: Layers without such variables that are frozen; see `still_layers`.
        retrace: Whether to remake the train function even if the set did not change.

    Returns:
        Whether the set of training variables changed.
    """
    changed = set_flags(model, train, still)
    optimizer = find_discriminative(model.optimizer)
    if optimizer is not None:
        with model.distribute_strategy.scope():
            optimizer.build(model.trainable_variables)
    if changed or retrace:
        model.make_train_function(force=True)
        if any(v.regularizer is not None for v in model.weights):
            # The loss of an evaluation counts the penalties of what trains.
            model.make_test_function(force=True)
    return changed
