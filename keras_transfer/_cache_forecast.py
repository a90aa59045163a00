"""What the feature cache will take and save, before anything is trained."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import tensorflow as tf

from keras_transfer._multiply_adds import multiply_adds
from keras_transfer._resolved_plan import ResolvedPlan
from keras_transfer._tables import format_size, format_table
from keras_transfer.features._entry import EntryPoint
from keras_transfer.features._prefix import Prefix, deepest_point, input_signature

# A step trains what is not frozen: one pass forwards, and one back that costs about two.
TRAINING_COST = 3.0
# Where almost nothing is left to compute, a step is mostly what Keras does around it
# (benchmarks/feature_cache.py measures it).
HEAD_SHARE = 0.99
MOST_STEPS_PER_EXECUTION = 16


@dataclasses.dataclass(frozen=True)
class BoundaryForecast:
    """A place where features can be kept.

    Attributes:
        after: The layer group before it, or `pooled`.
        bytes_per_example: What the features of an example take; `None` where their shape
            depends on the data.
        share: Share of the backbone's multiply-adds that lies before it, 0 to 1.
        stages: The stages that would read it.
    """

    after: str
    bytes_per_example: int | None
    share: float
    stages: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class CacheForecast:
    """What the feature cache will take and save; print it.

    Attributes:
        examples: How many examples it was asked about.
        boundaries: Every place where features can be kept, stem first.
        speedup: How many times as fast the plan runs as without the cache, counted in
            multiply-adds; 1 where nothing is cached.
        steps_per_execution: What to pass to `compile` for the stages in which a step is mostly
            Keras's own work; `None` where there is none.
    """

    examples: int
    boundaries: tuple[BoundaryForecast, ...]
    speedup: float
    steps_per_execution: int | None

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = [
            (
                "features after",
                "an example",
                f"{self.examples:,} examples",
                "work before it",
                "read by",
            )
        ]
        for boundary in self.boundaries:
            size = boundary.bytes_per_example
            rows.append(
                (
                    boundary.after,
                    "?" if size is None else format_size(size),
                    "?" if size is None else format_size(size * self.examples),
                    f"{100 * boundary.share:.1f} %",
                    ", ".join(boundary.stages) or "-",
                )
            )
        lines = [format_table(rows)]
        lines.append(
            f"Work of the plan without the cache, over that with it: {self.speedup:.2g} "
            "(multiply-adds; a backward pass counts as two forward passes)."
        )
        if self.steps_per_execution is not None:
            lines.append(
                "A step on pooled features is mostly what Keras does around it: consider "
                f"compile(steps_per_execution={self.steps_per_execution})."
            )
        return "\n".join(lines)


def forecast(
    model: Any, resolved: ResolvedPlan, examples: int, steps_per_epoch: int | None
) -> CacheForecast | None:
    """Returns what the cache will take and save, or `None` where it cannot be used.

    Args:
        model: A `TransferModel`.
        resolved: The plan on the model.
        examples: How many examples there are, validation data included.
        steps_per_epoch: Steps of an epoch, if known.
    """
    backbone = getattr(model, "backbone", None)
    if backbone is None or not getattr(backbone, "is_functional", False):
        return None
    n_groups = len(backbone.layer_groups)
    points = [
        EntryPoint(number)
        for number, group in enumerate(backbone.layer_groups, start=1)
        if number < n_groups and group.boundary is not None
    ]
    last = deepest_point(model, [])
    assert last is not None
    points.append(EntryPoint(n_groups))
    if last.pooled:
        points.append(last)
    read = {stage.stage.name: deepest_point(model, stage.variables) for stage in resolved.stages}
    long = {stage.stage.name: stage.stage.epochs for stage in resolved.stages}
    shares = _shares(backbone, points)
    sizes = _sizes(model, points)
    boundaries = []
    for point in points:
        name = "pooled" if point.pooled else backbone.layer_groups[point.start - 1].name
        stages = tuple(s for s, p in read.items() if p == point and long[s] > 1)
        boundaries.append(BoundaryForecast(name, sizes[point], shares[point], stages))
    cached = {s: shares[p] for s, p in read.items() if p is not None and long[s] > 1}
    return CacheForecast(
        examples,
        tuple(boundaries),
        _speedup(long, {s: 0.0 if p is None else shares[p] for s, p in read.items()}, cached),
        _steps_per_execution(cached, steps_per_epoch),
    )


def _shares(backbone: Any, points: list[EntryPoint]) -> dict[EntryPoint, float]:
    counts = multiply_adds(backbone.graph)
    total = max(1, sum(counts))
    shares = {}
    for point in points:
        if point.start == len(backbone.layer_groups):
            shares[point] = 1.0
        else:
            index = backbone.layer_groups[point.start - 1].boundary.index
            shares[point] = sum(counts[:index]) / total
    return shares


def _sizes(model: Any, points: list[EntryPoint]) -> dict[EntryPoint, int | None]:
    prefix = Prefix(model, points)
    fields = prefix.signature(input_signature(model.backbone.symbolic_inputs()))
    sizes: dict[EntryPoint, int | None] = {}
    for point in points:
        specs = [spec for name, spec in fields.items() if point.owns(name)]
        sizes[point] = None
        if all(None not in spec.shape[1:] for spec in specs):
            sizes[point] = sum(math.prod(spec.shape[1:]) * _itemsize(spec) for spec in specs)
    return sizes


def _itemsize(spec: tf.TensorSpec) -> int:
    return int(spec.dtype.size)


def _speedup(epochs: dict[str, int], shares: dict[str, float], cached: dict[str, float]) -> float:
    without = with_cache = 0.0
    for stage, length in epochs.items():
        frozen = shares[stage]
        training = TRAINING_COST * (1 - frozen)
        without += length * (frozen + training)
        with_cache += length * (training if stage in cached else frozen + training)
    with_cache += max(cached.values(), default=0.0)  # the pass
    return without / with_cache if with_cache else 1.0


def _steps_per_execution(cached: dict[str, float], steps_per_epoch: int | None) -> int | None:
    if not any(share > HEAD_SHARE for share in cached.values()):
        return None
    most = MOST_STEPS_PER_EXECUTION
    if steps_per_epoch is not None:
        most = min(most, steps_per_epoch)
    return 2 ** int(math.log2(most)) if most > 1 else None
