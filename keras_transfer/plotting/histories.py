"""Pictures of histories: metrics by epoch, with stage boundaries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_transfer import _checks
from keras_transfer.plan import UnfreezingPlan
from keras_transfer.plotting._axes import (
    FAINT,
    TRAIN,
    VALIDATION,
    pyplot,
    tidy,
    whole_numbers,
    write_stage,
)


def plot_history(
    history: keras.callbacks.History | Mapping[str, Sequence[float]],
    plan: UnfreezingPlan | None = None,
    metrics: Sequence[str] | None = None,
    axes: Any = None,
) -> Any:
    """Draws metrics against the epoch, with stage boundaries.

    Args:
        history: What `fit` returned, or its `history` dictionary.
        plan: The plan that ran, for the names of its stages; without it they are
            numbered. The boundaries come from the history, so stages that ended early
            are drawn as they were.
        metrics: Names of the metrics to draw, each with its `val_` counterpart; `None`
            for all.
        axes: As many matplotlib axes as metrics; `None` for new ones.

    Returns:
        A list of axes, one for each metric.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If a metric is not in the history, or the axes are too few.

    Example:

    >>> from keras_transfer import plotting
    >>> history = {"loss": [2, 1, 0.9], "val_loss": [2, 1.5, 1.2], "stage": [0, 0, 1]}
    >>> [ax.get_ylabel() for ax in plotting.plot_history(history)]
    ['loss']
    """
    columns = dict(history if isinstance(history, Mapping) else history.history)
    epochs = getattr(history, "epoch", None) or range(max(map(len, columns.values()), default=0))
    names = _metric_names(columns, metrics)
    if axes is None:
        _, grid = pyplot().subplots(
            1, len(names), figsize=(5.2 * len(names), 3.8), squeeze=False, layout="constrained"
        )
        axes = list(grid[0])
    axes = list(np.ravel(axes))
    if len(axes) != len(names):
        raise ValueError(
            f"`axes` must hold one for each metric ({', '.join(names)}). Received: {len(axes)} axes"
        )
    for ax, name in zip(axes, names, strict=True):
        for key, color, label in (
            (name, TRAIN, "training"),
            (f"val_{name}", VALIDATION, "validation"),
        ):
            if key in columns:
                # Points lie at an epoch's end, so that stages begin and end between them.
                at = np.asarray(epochs)[: len(columns[key])] + 1
                ax.plot(at, columns[key], "o-", color=color, label=label, markersize=3)
        _draw_stages(ax, columns.get("stage"), list(epochs), plan)
        ax.set_xlabel("epoch")
        ax.set_ylabel(name)
        if epochs:
            ax.set_xlim(epochs[0] + 0.5, epochs[-1] + 1.5)
        whole_numbers(ax)
        ax.legend(frameon=False)
        tidy(ax)
    return axes


def _metric_names(
    columns: Mapping[str, Sequence[float]], metrics: Sequence[str] | None
) -> list[str]:
    known = [
        name.removeprefix("val_")
        for name in columns
        if name not in ("stage", "trainable_parameters") and not name.startswith("learning_rate")
    ]
    known = list(dict.fromkeys(known))
    if metrics is None:
        if not known:
            raise ValueError(f"The history holds no metric. Its columns are: {list(columns)}")
        return known
    names = [metrics] if isinstance(metrics, str) else list(metrics)
    for name in names:
        if name not in known:
            raise ValueError(
                f"The history holds no metric {name!r}.{_checks.did_you_mean(name, known)} It "
                f"holds {', '.join(map(repr, known))}."
            )
    return names


def _draw_stages(
    ax: Any, stages: Sequence[float] | None, epochs: list[int], plan: UnfreezingPlan | None
) -> None:
    if not epochs:
        return
    if stages is None:
        if plan is None:
            return
        stages = [plan.index_at(epoch) for epoch in epochs]
    indices = [int(stage) for stage in stages]
    starts = [i for i, index in enumerate(indices) if i == 0 or index != indices[i - 1]]
    ends = [*starts[1:], len(indices)]
    for start, end in zip(starts, ends, strict=True):
        left, right = epochs[start] + 0.5, epochs[end - 1] + 1.5
        if start:
            ax.axvline(left, color=FAINT, linewidth=1, linestyle=":")
        index = indices[start]
        named = plan is not None and index < len(plan.stages)
        name = plan.stages[index].name if plan is not None and named else f"stage {index}"
        write_stage(ax, name, left, right, len(epochs))
