"""`find_lr`: the LR range test, which leaves no trace in the model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_transfer import _checks, _keras_internals, _resolved_plan, _trainability
from keras_transfer._batches import endless_batches
from keras_transfer._model_state import ModelState
from keras_transfer._resolved_plan import ResolvedPlan, ResolvedStage
from keras_transfer.layer_groups import Groups
from keras_transfer.lr_curve import LRCurve
from keras_transfer.lr_rules import has_diverged
from keras_transfer.optimizers import DiscriminativeOptimizer, find_discriminative
from keras_transfer.optimizers._copy import copy_with_rate
from keras_transfer.plan import UnfreezingPlan

FEWEST_STEPS = 20


def find_lr(
    model: keras.Model,
    data: Any,
    plan: UnfreezingPlan | None = None,
    stage: str | None = None,
    *,
    min_lr: float = 1e-7,
    max_lr: float = 10.0,
    num_steps: int = 100,
    batch_size: int = 32,
    smoothing: float = 0.9,
    groups: Groups | None = None,
    head: str | None = None,
    batch_norm: str = "freeze",
    verbose: int | str = 1,
) -> LRCurve:
    """Runs an LR range test: trains with a growing learning rate and watches the loss.

    The model trains for `num_steps` steps, each with a larger rate than the one before,
    until the loss diverges. The loss is each batch's own, before its step. With
    discriminative rates, the base rate grows and the ratios between layer groups stay, so
    the result is a `peak_lr` for the stage that was tested.

    Then everything is put back, also if the test is interrupted or fails, and the next `fit`
    runs as if there had been no test: the model's variables (weights, moving statistics,
    metrics, the seeds of dropout), which of them train, the optimizer with its slots,
    counts and learning rate or schedule, the order of shuffles in `data`, and the random
    numbers of Keras, TensorFlow, NumPy and Python. Four things are out of reach: your own
    objects that `data` or `train_step` change (a generator that is read, a
    `numpy.random.Generator`, a `tf.Variable` that no layer holds, Keras augmentation layers
    inside `Dataset.map`, `Dataset.random(rerandomize_each_iteration=True)`),
    `tf.random.uniform` and its like in a `tf.function` of your own that had run before,
    the order of a `tf.data` shuffle over more than 64 MB of arrays, and attributes that
    layers set on themselves as they run.

    Args:
        model: A built and compiled model: a `TransferModel` or any Keras model.
        data: What the model trains on: a `tf.data.Dataset`, a `keras.utils.PyDataset`, or
            a tuple of arrays (x, y) or (x, y, sample_weight). At least two batches; read
            again from the start where it has fewer than `num_steps`.
        plan: The plan of which a stage is tested; `None` to test the model as it is now.
        stage: Name of the stage; `None` for the plan's first.
        min_lr: Learning rate of the first step. Above 0.
        max_lr: Learning rate of the last step, if the loss does not diverge before. Above
            `min_lr`.
        num_steps: Number of rates to try, at equal ratios. At least 20. With
            `gradient_accumulation_steps`, a step is an update, and takes as many batches.
        batch_size: Examples in a batch, where `data` is arrays. Under a strategy, examples
            of a batch that do not divide evenly among the replicas are left out.
        smoothing: Share of the past in the smoothed loss, in [0, 1).
        groups: How to split a stock model's backbone into layer groups; as in
            `keras_transfer.callbacks.GradualUnfreezing`.
        head: Name of the first layer of a stock model's head; as there.
        batch_norm: What the BatchNorms of a stock model's backbone do; as there.
        verbose: 0 is silent, 1 and `"auto"` show a progress bar, 2 prints one line.

    Returns:
        The curve; print it, draw it with `keras_transfer.plotting.plot_lr_curve`, or take
        its `suggestion`.

    Raises:
        TypeError: If `data` is of a kind that cannot be read again.
        ValueError: If the model is not built or not compiled, the data has fewer than two
            batches, the rates are out of range, or the stage does not exist or fit.

    Example:

    >>> import keras, numpy as np
    >>> import keras_transfer as ktf
    >>> x = np.random.default_rng(0).normal(size=(256, 8))
    >>> y = (x.sum(axis=1) > 0).astype(int)
    >>> model = keras.Sequential(
    ...     [keras.Input((8,)), keras.layers.Dense(16, "relu"), keras.layers.Dense(2, "softmax")]
    ... )
    >>> model.compile("adam", "sparse_categorical_crossentropy")
    >>> curve = ktf.find_lr(model, (x, y), min_lr=1e-5, verbose=0)
    >>> 1e-4 < curve.suggestion < 1
    True

    Reference:
        - [Smith, 2017](https://arxiv.org/abs/1506.01186), section 3.3
    """
    _check_model(model)
    if verbose not in (0, 1, 2, "auto"):
        raise ValueError(f"`verbose` must be 0, 1, 2 or 'auto'. Received: verbose={verbose!r}")
    verbose = 1 if isinstance(verbose, str) else verbose
    min_lr = _checks.number(min_lr, "min_lr", above=0)
    max_lr = _checks.number(max_lr, "max_lr", above=0)
    if min_lr >= max_lr:
        raise ValueError(
            f"`min_lr` must be below `max_lr`. Received: min_lr={min_lr:g}, max_lr={max_lr:g}"
        )
    num_steps = _checks.integer(num_steps, "num_steps", minimum=FEWEST_STEPS)
    smoothing = _checks.number(smoothing, "smoothing", minimum=0, below=1)
    resolved, tested = _find_stage(model, plan, stage, groups, head, batch_norm)
    rates = np.geomspace(min_lr, max_lr, num_steps).tolist()
    with _keras_internals.random_numbers_apart():
        batches = endless_batches(data, batch_size)
        _check_batches(model, data)
        before = ModelState(model)
        try:
            optimizer = _make_ready(model, resolved, tested, min_lr)
            losses = _range_test(model, optimizer, batches, rates, smoothing, verbose)
        finally:
            before.restore()
    return LRCurve(
        rates[: len(losses)],
        losses,
        smoothing=smoothing,
        diverged=has_diverged(losses, smoothing),
        stage=None if tested is None else tested.stage.name,
    )


def _check_model(model: Any) -> None:
    if not isinstance(model, keras.Model):
        raise TypeError(f"`model` must be a Keras model. Received: model={model!r}")
    if not model.compiled or model.optimizer is None:
        raise ValueError(
            f"{model.name!r} is not compiled. Call `model.compile(optimizer=..., loss=...)` "
            "before `find_lr`."
        )
    if isinstance(model.optimizer, keras.optimizers.MultiOptimizer):
        raise ValueError(
            "`MultiOptimizer` has several learning rates, and an LR range test varies one. Compile "
            "with a single optimizer; for a rate of each layer group, use `Stage(lr_decay=...)`."
        )
    if not model.built:
        raise ValueError(
            f"{model.name!r} is not built, so it has no weights yet. Give it an input shape, or "
            "call it once on a batch, before `find_lr`."
        )


def _check_batches(model: keras.Model, data: Any) -> None:
    """Checks what stock losses need; a loss inside the model may do without targets."""
    shape = getattr(model, "input_shape", None)
    if isinstance(data, tf.data.Dataset) and isinstance(shape, tuple):
        spec = data.element_spec
        inputs = spec[0] if isinstance(spec, tuple) else spec
        rank = getattr(getattr(inputs, "shape", None), "rank", None)
        if rank is not None and rank == len(shape) - 1:
            raise ValueError(
                f"The data set in `data` is not batched. Received: elements of shape "
                f"{inputs.shape}, and the model takes {shape}. Pass "
                "`data.batch(32)`."
            )
    alone = len(data) == 1 if isinstance(data, tuple) else isinstance(data, np.ndarray | tf.Tensor)
    if alone and model.loss is not None:
        raise ValueError("`data` holds no targets, and the loss needs them. Pass `(x, y)`.")


def _find_stage(
    model: keras.Model,
    plan: UnfreezingPlan | None,
    stage: str | None,
    groups: Groups | None,
    head: str | None,
    batch_norm: str,
) -> tuple[ResolvedPlan | None, ResolvedStage | None]:
    if plan is None:
        if stage is not None:
            raise ValueError(f"`stage` needs the `plan` that it is in. Received: stage={stage!r}")
        if not model.trainable_variables:
            raise ValueError(f"Nothing in {model.name!r} trains. Unfreeze a layer, or pass a plan.")
        return None, None
    if not isinstance(plan, UnfreezingPlan):
        raise TypeError(
            f"`plan` must be an `UnfreezingPlan`. Received: a {type(plan).__name__}. Inputs and "
            "targets are one argument: pass `(x, y)` as `data`."
        )
    names = [one.name for one in plan.stages]
    index = 0 if stage is None else names.index(_checks.choice(stage, "stage", names))
    resolved = _resolved_plan.resolve(model, plan, groups, head, batch_norm)
    return resolved, resolved.stages[index]


def _make_ready(
    model: keras.Model,
    resolved: ResolvedPlan | None,
    tested: ResolvedStage | None,
    learning_rate: float,
) -> keras.optimizers.Optimizer:
    """Gives the model an optimizer for the test, which trains what the stage trains."""
    if tested is not None:
        _trainability.set_flags(model, tested.variables, tested.still)
    with model.distribute_strategy.scope():
        optimizer = copy_with_rate(model.optimizer, learning_rate)
        if resolved is not None and tested is not None:
            optimizer = DiscriminativeOptimizer.take_over(optimizer)
            inner = find_discriminative(optimizer)
            assert inner is not None
            inner.set_groups(resolved.groups.by_name())
            names = resolved.groups.names
            inner.set_stage_multipliers(_resolved_plan.stage_multipliers(tested.stage, names))
            inner.start_stage(no_decay_on=resolved.no_decay_on)
        if find_discriminative(optimizer) is not None or not optimizer.built:
            optimizer.build(model.trainable_variables)
        model.optimizer = optimizer
    model.make_train_function(force=True)
    return optimizer


def _range_test(
    model: keras.Model,
    optimizer: keras.optimizers.Optimizer,
    batches: Iterator[Any],
    rates: list[float],
    smoothing: float,
    verbose: int,
) -> list[float]:
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    batches_per_step = inner.gradient_accumulation_steps or 1
    progress = keras.utils.Progbar(
        len(rates), verbose=verbose, stateful_metrics=["learning_rate", "loss"]
    )
    losses: list[float] = []
    for step, rate in enumerate(rates):
        optimizer.learning_rate = rate
        own = [_train_on(model, next(batches)) for _ in range(batches_per_step)]
        losses.append(float(np.mean(own)))
        diverged = has_diverged(losses, smoothing)
        progress.update(
            step + 1,
            [("learning_rate", rate), ("loss", losses[-1])],
            finalize=diverged or step == len(rates) - 1,
        )
        if diverged:
            break
    return losses


def _train_on(model: keras.Model, batch: Any) -> float:
    """Trains on one batch and returns its own loss."""
    _keras_internals.build_symbolically(model, batch)
    # The loss that `train_step` returns is a mean since the last reset.
    model.reset_metrics()
    logs = model.train_function(iter([_spread_over_replicas(model, batch)]))
    if not isinstance(logs, dict) or "loss" not in logs:
        raise ValueError(
            f"The `train_step` of {model.name!r} returns no 'loss', so there is nothing to watch. "
            f"Received: {logs!r}"
        )
    return float(keras.ops.convert_to_numpy(logs["loss"]))


def _spread_over_replicas(model: keras.Model, batch: Any) -> Any:
    strategy = model.distribute_strategy
    replicas = strategy.num_replicas_in_sync
    if replicas == 1:
        return batch
    size = min(int(t.shape[0]) for t in keras.tree.flatten(batch)) // replicas
    if size == 0:
        raise ValueError(
            f"A batch has fewer examples than there are replicas ({replicas}). Use larger batches."
        )

    def share(context: tf.distribute.ValueContext) -> Any:
        start = context.replica_id_in_sync_group * size
        return keras.tree.map_structure(
            lambda t: tf.convert_to_tensor(t[start : start + size]), batch
        )

    return strategy.experimental_distribute_values_from_function(share)
