"""`describe`: what a plan would do to a model, before anything is trained."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import keras
import numpy as np

from keras_transfer import _checks, _keras_internals
from keras_transfer._cache_forecast import CacheForecast, forecast
from keras_transfer._resolved_plan import (
    ResolvedPlan,
    check_rates,
    resolve,
    stage_multipliers,
    updates_of_stage,
)
from keras_transfer._tables import format_size, format_table
from keras_transfer.layer_groups import Groups
from keras_transfer.optimizers import find_discriminative
from keras_transfer.plan import Stage, UnfreezingPlan
from keras_transfer.schedules import shape_schedule


@dataclasses.dataclass(frozen=True)
class StageDescription:
    """One row of the dry run.

    Attributes:
        name: The stage.
        first_epoch: Epoch at which it starts, counted from 0, if none before ends early.
        epochs: Its length; the most it may take where it ends on a plateau.
        groups: Names of the layer groups of which it trains at least a part.
        trains: The same in a few words.
        trainable_parameters: Number of parameters that train.
        optimizer_bytes: Memory of the optimizer's slots once the stage runs, those of earlier
            stages counted in; `None` if the model is not compiled.
        rates: Learning rate of each training group at the top of the schedule; the rate the
            optimizer is left with where the stage sets none. Empty where that is not known:
            the model is not compiled, or its optimizer has a schedule of its own.
    """

    name: str
    first_epoch: int
    epochs: int
    groups: tuple[str, ...]
    trains: str
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
        group_names: The model's layer groups, stem first.
        cache: What the feature cache will take and save, where the number of examples was given.
    """

    stages: tuple[StageDescription, ...]
    total_parameters: int
    total_epochs: int
    warnings: tuple[str, ...]
    notes: tuple[str, ...] = ()
    group_names: tuple[str, ...] = ()
    cache: CacheForecast | None = None

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = [
            ("stage", "epochs", "trains", "parameters", "learning rate", "optimizer memory")
        ]
        for stage in self.stages:
            share = 100 * stage.trainable_parameters / max(1, self.total_parameters)
            memory = "?" if stage.optimizer_bytes is None else format_size(stage.optimizer_bytes)
            first = stage.first_epoch + 1
            last = stage.first_epoch + stage.epochs
            rows.append(
                (
                    stage.name,
                    f"{first}-{last}" if last > first else str(first),
                    stage.trains,
                    f"{stage.trainable_parameters:,} ({share:.3g} %)",
                    _rates(stage.rates),
                    memory,
                )
            )
        lines = [format_table(rows), *self._rate_table()]
        lines += [f"{self.total_epochs} epochs in all."]
        lines += list(self.notes)
        if self.cache is not None:
            lines += ["", str(self.cache)]
        lines += [f"Warning: {warning}" for warning in self.warnings]
        return "\n".join(lines)

    def _rate_table(self) -> list[str]:
        """The rate of every group in every stage, where a stage has more than one rate."""
        if all(len(set(stage.rates.values())) < 2 for stage in self.stages):
            return []
        rows = [("learning rate of", *(stage.name for stage in self.stages))]
        for group in self.group_names:
            rates = [stage.rates.get(group) for stage in self.stages]
            rows.append((group, *("-" if rate is None else f"{rate:.3g}" for rate in rates)))
        return ["", format_table(rows), ""]


def describe(
    model: keras.Model,
    plan: UnfreezingPlan,
    groups: Groups | None = None,
    steps_per_epoch: int | None = None,
    *,
    head: str | None = None,
    batch_norm: str = "freeze",
    examples: int | None = None,
) -> PlanDescription:
    """Describes what a plan would do to a model, without training anything.

    Args:
        model: A `TransferModel`, or a stock Keras model; compiled, if rates and optimizer
            memory are wanted.
        plan: The plan.
        groups: How to split a stock model's backbone; as in `GradualUnfreezing`.
        head: Name of the first layer of a stock model's head; as in `GradualUnfreezing`.
        batch_norm: What the BatchNorms of a stock model's backbone do; as in
            `GradualUnfreezing`.
        steps_per_epoch: Steps of an epoch, to check warm-ups against.
        examples: How many examples there are, validation data included, to say what the
            feature cache will take and save; on a `TransferModel` only.

    Returns:
        A description that prints as a table: stage, epochs, groups, parameters that train,
        learning rates (of every layer group, where they differ), optimizer memory, and
        warnings.

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
    probe  1-5     new_head          9 (7.44 %)   0.001          0.1 kB
    all    6-10    stem to new_head  121 (100 %)  0.0001         1.0 kB
    10 epochs in all.
    """
    if not isinstance(plan, UnfreezingPlan):
        raise TypeError(f"`plan` must be an `UnfreezingPlan`. Received: plan={plan!r}")
    if steps_per_epoch is not None:
        steps_per_epoch = _checks.integer(steps_per_epoch, "steps_per_epoch", minimum=1)
    if examples is not None:
        examples = _checks.integer(examples, "examples", minimum=1)
    resolved = resolve(model, plan, groups, head, batch_norm)
    rate: float | None = None
    slots: dict[int, int] = {}
    compiled = getattr(model, "compiled", False) and model.optimizer is not None
    if compiled:
        check_rates(plan, model.optimizer)
        rate = _current_rate(model)
        slots = slot_bytes(model.optimizer, resolved.groups.variables)
    optimizer = find_discriminative(model.optimizer) if compiled else None
    own = {} if optimizer is None else optimizer.own_multipliers
    still: list[tuple[str, str]] = []
    trained_so_far: set[int] = set()
    rows = []
    for index, (stage, found) in enumerate(zip(plan.stages, resolved.stages, strict=True)):
        trained_so_far |= {id(v) for v in found.variables}
        names = [group.name for group in found.groups]
        rate = stage.peak_lr if stage.peak_lr is not None else rate
        multipliers = stage_multipliers(stage, resolved.groups.names) or own
        still += [(stage.name, n) for n in names if rate is None and multipliers.get(n) == 0]
        rows.append(
            StageDescription(
                name=stage.name,
                first_epoch=plan.first_epoch(index),
                epochs=stage.epochs,
                groups=tuple(names),
                trains=resolved.naming(found, most=2),
                trainable_parameters=found.parameters,
                optimizer_bytes=sum(slots[v] for v in trained_so_far) if compiled else None,
                rates={n: rate * multipliers.get(n, 1.0) for n in names if rate is not None},
            )
        )
    return PlanDescription(
        stages=tuple(rows),
        total_parameters=resolved.parameters,
        total_epochs=plan.total_epochs,
        warnings=(
            *(f"stage {name!r} gives {group} a learning rate of 0." for name, group in still),
            *_warnings(resolved, rows, steps_per_epoch, _batches_per_update(model)),
            *(_head_warnings(resolved) if head is None else ()),
        ),
        notes=tuple(_notes(resolved, model.optimizer if compiled else None)),
        group_names=tuple(resolved.groups.names),
        cache=(None if examples is None else forecast(model, resolved, examples, steps_per_epoch)),
    )


def slot_bytes(
    optimizer: keras.optimizers.Optimizer, variables: Iterable[keras.Variable]
) -> dict[int, int]:
    """Returns how many bytes of state an optimizer keeps for each variable, keyed by its `id`.

    An optimizer of the same class is built on one variable at a time, so that the most that
    is held at once is the state of the largest one. (Adafactor and Muon keep less for some
    shapes, so no number per parameter would be right.)
    """
    found = find_discriminative(optimizer)
    plain = getattr(optimizer, "inner_optimizer", optimizer) if found is None else found.to_plain()
    config = plain.get_config()
    sizes = {}
    for variable in variables:
        probe = type(plain).from_config(config)
        probe.build([variable])
        slots = [
            slot for lists in _keras_internals.optimizer_slots(probe).values() for slot in lists
        ]
        slots += _keras_internals.moving_averages(probe)
        slots += _keras_internals.gradient_accumulators(probe)
        sizes[id(variable)] = sum(slot.numpy().nbytes for slot in slots if slot is not None)
    return sizes


def _notes(resolved: ResolvedPlan, optimizer: keras.optimizers.Optimizer | None) -> list[str]:
    notes = [resolved.note] if resolved.note else []
    plain = getattr(optimizer, "inner_optimizer", optimizer)
    if resolved.no_decay_on and getattr(plain, "weight_decay", None):
        notes.append(
            f"No weight decay on {', '.join(resolved.no_decay_on)}: "
            f"{resolved.parameters_without_decay:,} parameters."
        )
    return notes


def _current_rate(model: keras.Model) -> float | None:
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    source = _keras_internals.rate_source(optimizer)
    if isinstance(source, keras.optimizers.schedules.LearningRateSchedule):
        return None
    return float(keras.ops.convert_to_numpy(model.optimizer.learning_rate))


def _warnings(
    resolved: ResolvedPlan,
    rows: Sequence[StageDescription],
    steps_per_epoch: int | None,
    per_update: int,
) -> list[str]:
    warnings = []
    for found, row in zip(resolved.stages, rows, strict=True):
        # As training has it: a rate may be above 0 here and not in float32.
        zeros = [name for name, rate in row.rates.items() if np.float32(rate) == 0]
        if zeros:
            warnings.append(f"stage {row.name!r} gives {', '.join(zeros)} a learning rate of 0.")
        warnings += _schedule_warnings(found.stage, steps_per_epoch, per_update)
    described = list(zip(resolved.stages, rows, strict=True))
    for (before, row_before), (found, row) in itertools.pairwise(described):
        same = {id(v) for v in found.variables} == {id(v) for v in before.variables}
        schedules = (before.stage.schedule, found.stage.schedule)
        if same and row.rates == row_before.rates and schedules[0] == schedules[1]:
            warnings.append(
                f"stage {row.name!r} trains the same variables at the same rates as "
                f"{row_before.name!r}."
            )
    return warnings


def _batches_per_update(model: keras.Model) -> int:
    optimizer = getattr(model, "optimizer", None)
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    return getattr(optimizer, "gradient_accumulation_steps", None) or 1


def _head_warnings(resolved: ResolvedPlan) -> list[str]:
    """Warns of a head that was found by rule and holds most of a stock model."""
    return [
        f"stage {found.stage.name!r} trains {100 * found.parameters / resolved.parameters:.1f} % "
        "of the parameters at depth=1. If the head starts too early, name its first layer: "
        "head='first_head_layer'."
        for found in resolved.stages
        if resolved.note and found.stage.depth == 1 and 2 * found.parameters > resolved.parameters
    ]


def _schedule_warnings(stage: Stage, steps_per_epoch: int | None, per_update: int) -> list[str]:
    if steps_per_epoch is None:
        return []
    total, warmup = updates_of_stage(stage, steps_per_epoch, per_update)
    if total == 0:
        return [
            (
                f"stage {stage.name!r} has {stage.epochs * steps_per_epoch} steps, too few for one "
                f"update: the optimizer accumulates gradients over {per_update}."
            )
        ]
    if stage.schedule in (None, "constant") or stage.warmup_epochs == 0:
        return []
    # The shape that training makes, which cuts a rise that does not fit.
    config = shape_schedule(str(stage.schedule), total, warmup).get_config()
    if config["warmup_steps"]:
        return []
    unit = "steps" if per_update == 1 else "updates"
    if warmup == 0:
        return [f"stage {stage.name!r} has a warm-up of less than one {unit[:-1]}."]
    return [f"stage {stage.name!r} has {total} {unit}, too few for the rise of its schedule."]


def _rates(rates: dict[str, Any]) -> str:
    values = list(rates.values())
    if not values:
        return "?"
    if max(values) == min(values):
        return f"{values[0]:.3g}"
    return f"{min(values):.3g} to {max(values):.3g}"
