"""`describe`: what a plan would do to a model, before anything is trained."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_transfer import _checks, _keras_internals, _trainability
from keras_transfer._stock_model import stock_model_groups
from keras_transfer._tables import format_table
from keras_transfer.layer_groups import Groups, LayerGroups
from keras_transfer.lr_groups import group_multipliers
from keras_transfer.optimizers import find_discriminative
from keras_transfer.plan import Stage, UnfreezingPlan


@dataclasses.dataclass(frozen=True)
class StageDescription:
    """One row of the dry run.

    Attributes:
        name: The stage.
        first_epoch: Epoch at which it starts, counted from 0, if none before ends early.
        epochs: Its length; the most it may take where it ends on a plateau.
        groups: Names of the layer groups of which it trains at least a part.
        trainable_parameters: Number of parameters that train.
        optimizer_bytes: Memory of the optimizer's slots once the stage runs, those of earlier
            stages counted in; `None` if the model is not compiled.
        rates: Learning rate of each training group at the top of the schedule; the rate the
            optimizer is left with where the stage sets none. Empty if not compiled.
    """

    name: str
    first_epoch: int
    epochs: int
    groups: tuple[str, ...]
    trainable_parameters: int
    optimizer_bytes: int | None
    rates: dict[str, float]


@dataclasses.dataclass(frozen=True)
class PlanDescription:
    """The dry run of a plan; print it.

    Attributes:
        stages: One row per stage.
        total_parameters: Number of parameters of the model that may train.
        total_epochs: Length of the plan.
        warnings: What looks like a mistake.
        notes: Choices that were made for the user, such as where the head begins.
    """

    stages: tuple[StageDescription, ...]
    total_parameters: int
    total_epochs: int
    warnings: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = [
            ("stage", "epochs", "trains", "parameters", "learning rate", "optimizer memory")
        ]
        for stage in self.stages:
            share = 100 * stage.trainable_parameters / max(1, self.total_parameters)
            memory = "?" if stage.optimizer_bytes is None else _megabytes(stage.optimizer_bytes)
            first = stage.first_epoch + 1
            last = stage.first_epoch + stage.epochs
            rows.append(
                (
                    stage.name,
                    f"{first}-{last}" if last > first else str(first),
                    _span(stage.groups),
                    f"{stage.trainable_parameters:,} ({share:.3g} %)",
                    _rates(stage.rates),
                    memory,
                )
            )
        lines = [format_table(rows), f"{self.total_epochs} epochs in all."]
        lines += list(self.notes)
        lines += [f"Warning: {warning}" for warning in self.warnings]
        return "\n".join(lines)


def describe(
    model: keras.Model,
    plan: UnfreezingPlan,
    groups: Groups | None = None,
    *,
    head: str | None = None,
    steps_per_epoch: int | None = None,
) -> PlanDescription:
    """Describes what a plan would do to a model, without training anything.

    Args:
        model: A `TransferModel`, or a stock Keras model; compiled, if rates and optimizer
            memory are wanted.
        plan: The plan.
        groups: How to split a stock model's backbone; as in `GradualUnfreezing`.
        head: Name of the first layer of a stock model's head; as in `GradualUnfreezing`.
        steps_per_epoch: Steps of an epoch, to check warm-ups against.

    Returns:
        A description that prints as a table: stage, epochs, groups, parameters that train,
        learning rates, optimizer memory, and warnings.

    Raises:
        ValueError: If the plan does not fit the model.

    Example:

    >>> import keras
    >>> import keras_transfer as ktf
    >>> backbone = keras.Sequential([
    ...     keras.Input((4,)), keras.layers.Dense(8, "relu", name="stem"),
    ...     keras.layers.Dense(8, "relu", name="top")])
    >>> model = ktf.TransferModel(
    ...     backbone, keras.layers.Dense(1, name="new_head"), groups="blocks")
    >>> model.compile("adam", "mse")
    >>> print(ktf.describe(model, ktf.recipes.lp_ft()))
    stage  epochs  trains            parameters   learning rate  optimizer memory
    -----  ------  ----------------  -----------  -------------  ----------------
    probe  1-5     new_head          9 (7.44 %)   0.001          0.0 MB
    all    6-10    stem to new_head  121 (100 %)  0.0001         0.0 MB
    10 epochs in all.
    """
    if not isinstance(plan, UnfreezingPlan):
        raise TypeError(f"`plan` must be an `UnfreezingPlan`. Received: plan={plan!r}")
    if steps_per_epoch is not None:
        steps_per_epoch = _checks.integer(steps_per_epoch, "steps_per_epoch", minimum=1)
    layer_groups, always_frozen, notes = _layer_groups(model, groups, head)
    compiled = getattr(model, "compiled", False) and model.optimizer is not None
    per_parameter = slot_bytes_per_parameter(model.optimizer) if compiled else None
    rate = _current_rate(model) if compiled else None
    trained_so_far: dict[int, int] = {}
    rows = []
    for index, stage in enumerate(plan.stages):
        variables = _trainability.variables_of_stage(stage, layer_groups, always_frozen)
        trained_so_far.update((id(v), int(np.prod(v.shape))) for v in variables)
        training = {id(v) for v in variables}
        names = [g.name for g in layer_groups if any(id(v) in training for v in g.variables)]
        rate = stage.peak_lr if stage.peak_lr is not None else rate
        multipliers = group_multipliers(layer_groups.names, lr_decay=stage.lr_decay or 1.0)
        rows.append(
            StageDescription(
                name=stage.name,
                first_epoch=plan.first_epoch(index),
                epochs=stage.epochs,
                groups=tuple(names),
                trainable_parameters=sum(int(np.prod(v.shape)) for v in variables),
                optimizer_bytes=(
                    None
                    if per_parameter is None
                    else round(per_parameter * sum(trained_so_far.values()))
                ),
                rates={} if rate is None else {name: rate * multipliers[name] for name in names},
            )
        )
    return PlanDescription(
        stages=tuple(rows),
        total_parameters=sum(group.parameters for group in layer_groups),
        total_epochs=plan.total_epochs,
        warnings=tuple(_warnings(plan, rows, steps_per_epoch)),
        notes=notes,
    )


def _layer_groups(
    model: keras.Model, groups: Groups | None, head: str | None
) -> tuple[LayerGroups, list[keras.Variable], tuple[str, ...]]:
    own = getattr(model, "layer_groups", None)
    if isinstance(own, LayerGroups):
        if groups is not None or head is not None:
            raise ValueError(
                "A `TransferModel` has its own layer groups; `groups` and `head` are for stock "
                "models."
            )
        return own, list(model.backbone.always_frozen), ()
    found = stock_model_groups(model, "auto" if groups is None else groups, head)
    return found, [], (f"The head was found {found.note}.",)


def slot_bytes_per_parameter(optimizer: keras.optimizers.Optimizer) -> float:
    """Returns the bytes of optimizer state per trained parameter, measured on a small variable."""
    adopted = find_discriminative(optimizer)
    plain = optimizer if adopted is None else adopted.to_plain()
    plain = getattr(plain, "inner_optimizer", plain)
    probe = type(plain).from_config(plain.get_config())
    variable = keras.Variable(np.zeros((64, 64), "float32"), name="probe")
    before = len(probe.variables)
    probe.build([variable])
    slots = probe.variables[before:]
    return sum(4 * int(np.prod(slot.shape)) for slot in slots) / (64 * 64)


def _current_rate(model: keras.Model) -> float | None:
    source = _keras_internals.rate_source(model.optimizer)
    if isinstance(source, keras.optimizers.schedules.LearningRateSchedule):
        return None
    return float(keras.ops.convert_to_numpy(model.optimizer.learning_rate))


def _warnings(
    plan: UnfreezingPlan, rows: Sequence[StageDescription], steps_per_epoch: int | None
) -> list[str]:
    found = []
    for stage, row in zip(plan.stages, rows, strict=True):
        if any(rate == 0 for rate in row.rates.values()):
            still = ", ".join(name for name, rate in row.rates.items() if rate == 0)
            found.append(f"stage {stage.name!r} gives {still} a learning rate of 0.")
        found += _schedule_warnings(stage, steps_per_epoch)
    for (before, row_before), (stage, row) in itertools.pairwise(
        zip(plan.stages, rows, strict=True)
    ):
        same = row.groups == row_before.groups and row.rates == row_before.rates
        if same and stage.train == before.train and stage.schedule == before.schedule:
            found.append(
                f"stage {stage.name!r} trains the same groups at the same rates as {before.name!r}."
            )
    return found


def _schedule_warnings(stage: Stage, steps_per_epoch: int | None) -> list[str]:
    if stage.schedule in (None, "constant") or steps_per_epoch is None:
        return []
    total = stage.epochs * steps_per_epoch
    if stage.warmup_epochs is not None:
        warmup = round(stage.warmup_epochs * steps_per_epoch)
        if stage.warmup_epochs > 0 and warmup < 1:
            return [f"stage {stage.name!r} has a warm-up of less than one step."]
    elif total < 10:
        return [f"stage {stage.name!r} has {total} steps, too few for the rise of its schedule."]
    return []


def _span(groups: Sequence[str]) -> str:
    if len(groups) <= 2:
        return ", ".join(groups)
    return f"{groups[0]} to {groups[-1]}"


def _rates(rates: dict[str, Any]) -> str:
    values = list(rates.values())
    if not values:
        return "?"
    if max(values) == min(values):
        return f"{values[0]:.3g}"
    return f"{values[0]:.3g} to {values[-1]:.3g}"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
