"""Pictures of plans: which layer groups train when, and how fast."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from keras_transfer._stock_model import stock_model_groups
from keras_transfer.dry_run import StageDescription, describe
from keras_transfer.layer_groups import Groups, LayerGroups
from keras_transfer.plan import UnfreezingPlan
from keras_transfer.plotting._axes import (
    FAINT,
    FROZEN,
    TRAIN,
    color_map,
    legend_below,
    new_axes,
    tidy,
    whole_numbers,
    write_stage,
)


def plot_plan(
    plan: UnfreezingPlan,
    model: keras.Model,
    ax: Any = None,
    groups: Groups | None = None,
    head: str | None = None,
) -> Any:
    """Draws which layer groups train in which epochs, coloured by learning rate.

    Args:
        plan: The plan.
        model: The model that it is for: a `TransferModel` or a stock model; compiled, if
            rates that the plan leaves to the optimizer are to be known.
        ax: Matplotlib axes to draw into; `None` for new ones.
        groups: How to split a stock model's backbone; as in `GradualUnfreezing`.
        head: Name of the first layer of a stock model's head; as in `GradualUnfreezing`.

    Returns:
        The axes.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If the plan does not fit the model.

    Example:

    >>> import keras
    >>> import keras_transfer as ktf
    >>> from keras_transfer import plotting
    >>> backbone = keras.Sequential([
    ...     keras.Input((4,)), keras.layers.Dense(8, name="stem"),
    ...     keras.layers.Dense(8, name="body")])
    >>> model = ktf.TransferModel(backbone, keras.layers.Dense(1, name="top"), groups="blocks")
    >>> ax = plotting.plot_plan(ktf.recipes.lp_ft(), model)
    >>> [label.get_text() for label in ax.get_yticklabels()]
    ['stem', 'body', 'top']
    """
    dry_run = describe(model, plan, groups, head=head)
    names = _group_names(model, dry_run.stages, groups, head)
    ax = new_axes(ax, (7.0, 1.2 + 0.45 * len(names)))
    from matplotlib.colors import LogNorm

    rates = [rate for stage in dry_run.stages for rate in stage.rates.values() if rate > 0]
    low, high = (min(rates), max(rates)) if rates else (1.0, 1.0)
    if low == high:
        low, high = low / 3, high * 3
    norm, colors = LogNorm(low, high), color_map()
    for stage in dry_run.stages:
        for row, name in enumerate(names):
            rate = stage.rates.get(name)
            color: Any = FROZEN
            if name in stage.groups:
                color = TRAIN if rate is None else "white" if rate == 0 else colors(norm(rate))
            ax.barh(
                row,
                stage.epochs,
                left=stage.first_epoch,
                height=0.86,
                color=color,
                # The hatch has the edge's colour, and would not be seen on white.
                edgecolor=FAINT if name in stage.groups and rate == 0 else "white",
                linewidth=1,
                hatch="///" if name in stage.groups and rate == 0 else None,
            )
            if name in stage.groups and rate is not None:
                _write_rate(ax, stage, row, rate, color, dry_run.total_epochs)
        if stage.first_epoch:
            ax.axvline(stage.first_epoch, color="black", linewidth=0.8, linestyle=":")
        end = stage.first_epoch + stage.epochs
        write_stage(ax, stage.name, stage.first_epoch, end, dry_run.total_epochs)
    ax.set_yticks(range(len(names)), names)
    ax.set_xlim(0, dry_run.total_epochs)
    ax.set_ylim(-0.5, len(names) - 0.5)
    ax.set_xlabel("epoch")
    whole_numbers(ax)
    if rates:
        from matplotlib.cm import ScalarMappable

        bar = ax.figure.colorbar(ScalarMappable(norm, colors), ax=ax, pad=0.02)
        # In one line it would be longer than the axes of three groups.
        bar.set_label("learning rate\n(top of the schedule)")
    keys = {"frozen": FROZEN} if rates else {"trains": TRAIN, "frozen": FROZEN}
    for label, color in keys.items():
        ax.plot([], [], "s", color=color, markersize=9, label=label)
    legend_below(ax)
    tidy(ax)
    return ax


def _group_names(
    model: keras.Model,
    stages: Sequence[StageDescription],
    groups: Groups | None,
    head: str | None,
) -> list[str]:
    own = getattr(model, "layer_groups", None)
    if isinstance(own, LayerGroups):
        return own.names
    return stock_model_groups(model, "auto" if groups is None else groups, head).names


def _write_rate(
    ax: Any, stage: StageDescription, row: int, rate: float, color: Any, total_epochs: int
) -> None:
    if stage.epochs / total_epochs < 0.1:
        return  # the number would not fit into its bar
    dark = isinstance(color, tuple) and 0.3 * color[0] + 0.6 * color[1] + 0.1 * color[2] < 0.55
    ax.text(
        stage.first_epoch + stage.epochs / 2,
        row,
        f"{rate:.1e}",
        ha="center",
        va="center",
        fontsize="small",
        color="white" if dark else "black",
    )
