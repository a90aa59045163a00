"""Decides which stages of a training read cached features, and says why the others do not."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from keras_transfer._tables import format_size
from keras_transfer.features._entry import EntryPoint
from keras_transfer.features._prefix import NotDeterministicError, Prefix, deepest_point
from keras_transfer.features._sources import Source
from keras_transfer.features.cache import FeatureCache, predicted_bytes

# Methods that see a batch's inputs; of the user's own it is not known what they do with them.
READ_INPUTS = ("train_step", "test_step", "compute_loss", "compute_metrics")


@dataclasses.dataclass(frozen=True)
class StageToRun:
    """What a stage of a training means for the cache.

    Attributes:
        name: The stage; empty for a `fit` without a plan.
        variables: What trains.
        epochs: The most epochs that this `fit` will spend in it.
    """

    name: str
    variables: Sequence[Any]
    epochs: int

    def __str__(self) -> str:
        return f"stage {self.name!r}" if self.name else "training"


@dataclasses.dataclass
class Decision:
    """Where each stage starts.

    Attributes:
        points: The entry point of each stage; `None` where it starts from the inputs.
        frozen_to: The last entry point that each stage leaves as it is.
        prefix: The frozen layers up to all points, traced once.
        caches_validation: Whether validation data is cached as well.
        line: What was decided and why, in one line; empty where there was nothing to decide.
    """

    points: list[EntryPoint | None]
    frozen_to: list[EntryPoint | None]
    prefix: Prefix | None = None
    caches_validation: bool = False
    line: str = ""


def decide(
    model: Any,
    stages: Sequence[StageToRun],
    train: Source | str,
    validation: Source | str | None,
    cache: FeatureCache,
    *,
    insist: bool,
) -> Decision:
    """Decides which stages read cached features.

    Args:
        model: A built `TransferModel`.
        stages: The stages, in order.
        train: The training data, or why it cannot be read twice.
        validation: The validation data, if there is any.
        cache: Where features will be kept.
        insist: Whether to raise where features cannot be kept, and to trust data whose
            values are not known to be the same each time.

    Raises:
        ValueError: If `insist` and features cannot be kept.
    """
    frozen_to = [deepest_point(model, stage.variables) for stage in stages]
    points = list(frozen_to)
    reasons: dict[int, str] = {}
    decision = Decision(points, frozen_to)
    problem = _problem_of_model(model, stages, frozen_to, insist) or _problem_of(train, insist)
    if all(point is None for point in points) and not insist:
        # Nothing is frozen before the head, so there may be nothing to say.
        problem = problem if not model.backbone.is_functional else None
        if problem is None:
            return decision
    if problem is not None:
        if insist:
            raise ValueError(f"Features cannot be cached: {problem}. Pass cache_features=False.")
        decision.points = [None] * len(stages)
        decision.line = f"Feature cache off: {problem}."
        return decision
    assert isinstance(train, Source)
    unkept = None if validation is None else _problem_of(validation, insist)
    if unkept is not None and insist:
        raise ValueError(
            f"Features of the validation data cannot be cached: {unkept}. Use "
            "cache_features='auto', which caches those of the training data alone."
        )
    for index, stage in enumerate(stages):
        if points[index] is None:
            reasons[index] = "nothing before it is frozen"
        elif stage.epochs < (1 if insist else 2):
            reasons[index] = "has one epoch" if stage.epochs else "does not run"
            points[index] = None
    sizes = _check_prefix(decision, model, train, validation, cache, reasons, insist)
    decision.caches_validation = validation is not None and unkept is None
    decision.line = _line(stages, decision, reasons, sizes, unkept)
    return decision


def _problem_of_model(
    model: Any,
    stages: Sequence[StageToRun],
    frozen_to: Sequence[EntryPoint | None],
    insist: bool,
) -> str | None:
    own = model.overridden("call")
    if own or (not insist and model.overridden(*READ_INPUTS)):
        name = (own or model.overridden(*READ_INPUTS))[0]
        return f"{type(model).__name__} has a `{name}` of its own, which may read raw inputs"
    if not model.backbone.is_functional:
        ids = {id(v) for v in model.backbone.layer_groups.variables}
        is_frozen = any(
            not any(id(v) in ids for v in stage.variables) for stage in stages if stage.epochs
        )
        if is_frozen or insist:
            return (
                f"the backbone {model.backbone.model.name!r} is not a functional model, so it has "
                "no boundaries to start from"
            )
        return None
    if insist and all(point is None for point in frozen_to):
        return "no stage leaves the first layer group frozen"
    return None


def _problem_of(source: Source | str, insist: bool) -> str | None:
    """Returns why a source cannot be cached, or `None`."""
    if isinstance(source, str):
        return source
    if source.n_batches is None:
        return f"{source.kind} of unknown length cannot be kept"
    if source.reason and (source.differs or not insist):
        return source.reason
    return None


def _check_prefix(
    decision: Decision,
    model: Any,
    train: Source,
    validation: Source | str | None,
    cache: FeatureCache,
    reasons: dict[int, str],
    insist: bool,
) -> dict[EntryPoint, int] | None:
    """Traces the frozen layers and strikes what is random or too large; returns sizes."""
    wanted = {point for point in decision.points if point is not None}
    if not wanted:
        return {}
    prefix, fields, problems = _trace(model, wanted, train, cache.fold_constants)
    if problems and insist:
        problem = next(iter(problems.values()))
        raise ValueError(f"Features cannot be cached: {problem}. Pass cache_features=False.")
    _strike(decision, problems, reasons)
    wanted -= set(problems)
    decision.prefix = prefix
    if not wanted or prefix is None:
        return {}
    by_field = predicted_bytes(fields, train, cache.dtype)
    if by_field is None:
        return None
    sizes = {
        point: sum(size for name, size in by_field.items() if point.owns(name)) + train.target_bytes
        for point in wanted
    }
    scale = 1.0
    if isinstance(validation, Source) and validation.n_examples and train.n_examples:
        scale += validation.n_examples / train.n_examples
    total, too_large = 0.0, {}
    for point in sorted(wanted, key=lambda p: sizes[p]):
        if cache.room is not None and total + scale * sizes[point] > cache.room:
            too_large[point] = (
                f"its features would take {format_size(round(scale * sizes[point]))} of "
                f"{format_size(cache.room)}"
            )
        else:
            total += scale * sizes[point]
    if too_large and insist:
        problem = next(iter(too_large.values()))
        raise ValueError(
            f"Features cannot be cached: {problem}. Raise FeatureCache(max_bytes=...), give it a "
            "directory, or pass cache_features=False."
        )
    _strike(decision, too_large, reasons)
    left = wanted - set(too_large)
    if left and left != set(prefix.points):
        decision.prefix = Prefix(model, sorted(left), fold_constants=cache.fold_constants)
    return {point: round(scale * size) for point, size in sizes.items()}


def _trace(
    model: Any, wanted: set[EntryPoint], train: Source, fold_constants: bool
) -> tuple[Prefix | None, dict[str, Any], dict[EntryPoint, str]]:
    prefix = Prefix(model, sorted(wanted), fold_constants=fold_constants)
    try:
        return prefix, prefix.signature(train.signature), {}
    except NotDeterministicError as error:
        if len(wanted) == 1:
            return None, {}, dict.fromkeys(wanted, str(error))
    # What is random may lie behind some of the points only.
    problems: dict[EntryPoint, str] = {}
    for point in sorted(wanted):
        _, _, found = _trace(model, {point}, train, fold_constants)
        problems.update(found)
    good = wanted - set(problems)
    if not good:
        return None, {}, problems
    prefix = Prefix(model, sorted(good), fold_constants=fold_constants)
    return prefix, prefix.signature(train.signature), problems


def _strike(decision: Decision, problems: dict[EntryPoint, str], reasons: dict[int, str]) -> None:
    for index, point in enumerate(decision.points):
        if point in problems:
            decision.points[index] = None
            reasons[index] = problems[point]


def _line(
    stages: Sequence[StageToRun],
    decision: Decision,
    reasons: dict[int, str],
    sizes: dict[EntryPoint, int] | None,
    unkept: str | None,
) -> str:
    reading = []
    for stage, point in zip(stages, decision.points, strict=True):
        if point is not None:
            size = "" if sizes is None else f" ({format_size(sizes[point])})"
            reading.append(f"{stage}{size}")
    why = [f"{stages[i]}: {reason}" for i, reason in reasons.items() if stages[i].epochs]
    if not reading:
        return f"Feature cache off for {'; '.join(why)}." if why else ""
    line = f"Feature cache on for {', '.join(reading)}"
    line += f"; off for {'; '.join(why)}." if why else "."
    if unkept is not None:
        line += f" Validation data is not cached: {unkept}."
    return line
