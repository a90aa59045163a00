"""What a plan means on a model: its layer groups, and the variables of each stage.

The callback that runs a plan and the dry run that describes it both ask here, so that they
cannot disagree.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import keras

from keras_transfer import _checks, _keras_internals, _trainability
from keras_transfer._layer_variables import count_parameters, variables_that_may_train
from keras_transfer._stock_model import stock_model_groups
from keras_transfer.layer_groups import Groups, LayerGroup, LayerGroups
from keras_transfer.lr_groups import group_multipliers
from keras_transfer.optimizers._no_decay import exempt
from keras_transfer.plan import Stage, UnfreezingPlan

STOCK_BATCH_NORM_POLICIES = ("freeze", "train")


@dataclasses.dataclass(frozen=True)
class ResolvedStage:
    """A stage on a model.

    Attributes:
        stage: The stage.
        variables: What trains while it runs.
        still: Layers whose statistics must not move, though no variable of theirs says so.
        groups: The layer groups of which it trains at least a part.
    """

    stage: Stage
    variables: list[keras.Variable]
    still: list[keras.layers.Layer]
    groups: list[LayerGroup]

    @property
    def parameters(self) -> int:
        """Number of parameters that train."""
        return count_parameters(self.variables)


@dataclasses.dataclass(frozen=True)
class ResolvedPlan:
    """A plan on a model.

    Attributes:
        groups: The model's layer groups, the head last.
        stages: The stages, in order.
        note: What was decided for the user, in one line; empty on a `TransferModel`.
        no_decay_on: The plan's rules for what is exempt from weight decay.
    """

    groups: LayerGroups
    stages: list[ResolvedStage]
    note: str
    no_decay_on: tuple[str, ...] = ()

    @property
    def parameters(self) -> int:
        """Number of parameters that may train, whatever the plan."""
        return count_parameters(self.groups.variables)

    @property
    def parameters_without_decay(self) -> int:
        """Number of parameters that the plan exempts from weight decay."""
        return count_parameters([v for v in self.groups.variables if exempt(self.no_decay_on, v)])

    def naming(self, stage: ResolvedStage, most: int) -> str:
        """Names the groups that a stage trains; more than `most` neighbours by first and last."""
        names = [group.name for group in stage.groups]
        start = self.groups.names.index(names[0])
        if len(names) > most and self.groups.names[start : start + len(names)] == names:
            return f"{names[0]} to {names[-1]}"
        return ", ".join(names)


def is_transfer_model(model: Any) -> bool:
    """Whether the model has layer groups and a BatchNorm policy of its own."""
    return isinstance(getattr(model, "layer_groups", None), LayerGroups)


def resolve(
    model: keras.Model,
    plan: UnfreezingPlan,
    groups: Groups | None = None,
    head: str | None = None,
    batch_norm: str = "freeze",
) -> ResolvedPlan:
    """Finds the variables of each stage of `plan`.

    Args:
        model: A built `TransferModel`, or a built stock model.
        plan: The plan.
        groups: How to split a stock model's backbone.
        head: Name of the first layer of a stock model's head.
        batch_norm: What the BatchNorms of a stock model's backbone do; see
            `check_batch_norm`.

    Raises:
        ValueError: If the plan does not fit the model.
    """
    if is_transfer_model(model):
        for name, value in (("groups", groups), ("head", head)):
            if value is not None:
                raise ValueError(
                    f"A `TransferModel` has its own layer groups; `{name}` is for stock models. "
                    "Say it to `TransferModel` instead."
                )
        if not model.built:
            raise ValueError(
                f"{model.name!r} is not built yet, so its head has no variables: its backbone is "
                "not a functional model. Call the model once on a batch, or `fit` it, and then "
                "ask again."
            )
        found: LayerGroups = model.layer_groups
        backbone = model.backbone
        frozen = backbone.batch_norms if backbone.batch_norm == "freeze" else []
        note = ""
    else:
        check_batch_norm(batch_norm)
        found = stock_model_groups(model, "auto" if groups is None else groups, head)
        frozen = []
        if batch_norm == "freeze":
            layers = [layer for group in found[:-1] for layer in group.all_layers]
            frozen = [la for la in layers if isinstance(la, keras.layers.BatchNormalization)]
        starts = found.note if found.note.startswith("after") else f"at {found[-1].name!r}"
        note = f"The head starts {starts}. BatchNorm: {batch_norm}."
    always_frozen = variables_that_may_train(frozen)
    stages = []
    for stage in plan.stages:
        stage_multipliers(stage, found.names)
        variables = _trainability.variables_of_stage(stage, found, always_frozen)
        training = {id(v) for v in variables}
        touched = [g for g in found if any(id(v) in training for v in g.variables)]
        still = _trainability.still_layers(variables, found, frozen)
        stages.append(ResolvedStage(stage, variables, still, touched))
    _check_no_decay(plan.no_decay_on, found.variables)
    return ResolvedPlan(found, stages, note, tuple(plan.no_decay_on))


def stage_multipliers(stage: Stage, names: Sequence[str]) -> dict[str, float] | None:
    """Returns the multiplier of each group in a stage, or `None` if it leaves them alone.

    Raises:
        ValueError: If a pattern matches no group, or two patterns match one.
    """
    if stage.lr_multipliers is None:
        decay = stage.lr_decay
        return None if decay is None else group_multipliers(names, lr_decay=decay)
    try:
        return group_multipliers(names, rates=stage.lr_multipliers)
    except ValueError as error:
        raise ValueError(f"Stage {stage.name!r}, `lr_multipliers`: {error}") from None


def updates_of_stage(
    stage: Stage, steps_per_epoch: int, batches_per_update: int
) -> tuple[int, int | None]:
    """Returns the updates of a stage, and of its rise (`None` for the schedule's own)."""
    # Each stage begins a window of accumulated batches, and one that is not full is dropped.
    total = stage.epochs * steps_per_epoch // batches_per_update
    if stage.warmup_epochs is None:
        return total, None
    return total, round(stage.warmup_epochs * steps_per_epoch / batches_per_update)


def _check_no_decay(rules: Iterable[str], variables: list[keras.Variable]) -> None:
    for rule in rules:
        if rule in ("norm", "bias") or any(exempt([rule], v) for v in variables):
            continue
        paths = [v.path for v in variables]
        raise ValueError(
            f"No variable's path matches {rule!r} in `no_decay_on` as a whole."
            f"{_checks.did_you_mean(rule, ['norm', 'bias', *paths])} Paths look like {paths[0]!r}."
        )


def check_batch_norm(batch_norm: str) -> str:
    """Checks what the BatchNorms of a stock model's backbone are to do."""
    if batch_norm == "inference":
        raise ValueError(
            "batch_norm='inference' needs a `TransferModel`: on a stock model `fit` passes "
            "training=True to every BatchNormalization that trains. Use 'freeze' or 'train'."
        )
    return _checks.choice(batch_norm, "batch_norm", STOCK_BATCH_NORM_POLICIES)


def check_rates(plan: UnfreezingPlan, optimizer: keras.optimizers.Optimizer) -> None:
    """Checks that nothing but the plan would set the rates that the plan sets.

    Raises:
        ValueError: If a stage has a rate or a schedule, and the optimizer has a schedule.
    """
    source = _keras_internals.rate_source(getattr(optimizer, "inner_optimizer", optimizer))
    if not isinstance(source, keras.optimizers.schedules.LearningRateSchedule):
        return
    for stage in plan.stages:
        for name in ("peak_lr", "schedule"):
            if getattr(stage, name) is not None:
                raise ValueError(
                    f"Stage {stage.name!r} sets `{name}`, but the optimizer's learning rate is a "
                    f"{type(source).__name__}, which would be overruled. Compile with a number "
                    "as learning rate, or leave the rates of the plan out."
                )
