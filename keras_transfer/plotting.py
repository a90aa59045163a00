"""Pictures of LR curves, plans and histories. Needs matplotlib: the extra `plots`.

Each function draws into axes that it is given or makes, and returns them: save the
picture with `ax.figure.savefig(...)`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_transfer import _checks
from keras_transfer._stock_model import stock_model_groups
from keras_transfer.dry_run import StageDescription, describe
from keras_transfer.layer_groups import Groups, LayerGroups
from keras_transfer.lr_curve import LRCurve
from keras_transfer.plan import UnfreezingPlan

_TRAIN, _VALIDATION, _ACCENT, _FROZEN, _FAINT = (
    "#1f77b4",
    "#d95f02",
    "#c0267e",
    "#e9e9e9",
    "#9a9a9a",
)


def plot_lr_curve(
    curve: LRCurve,
    ax: Any = None,
    rule: str | Callable[[Any, Any], float] | Sequence[str] | None = "valley",
) -> Any:
    """Draws the loss against the learning rate, with the suggested rate.

    Args:
        curve: What `keras_transfer.find_lr` returned.
        ax: Matplotlib axes to draw into; `None` for new ones.
        rule: The rule or rules whose suggestion is marked, as in `LRCurve.suggest`;
            `None` for none. A rule that finds nothing is named in the legend.

    Returns:
        The axes.

    Raises:
        ImportError: If matplotlib is not installed.

    Example:

    >>> import numpy as np
    >>> from keras_transfer import plotting
    >>> from keras_transfer.lr_curve import LRCurve
    >>> rates = np.geomspace(1e-5, 1, 100)
    >>> ax = plotting.plot_lr_curve(LRCurve(rates, 2 - rates / (rates + 1e-2)))
    >>> ax.get_xscale(), ax.get_xlabel()
    ('log', 'learning rate')
    """
    if not isinstance(curve, LRCurve):
        raise TypeError(
            f"`curve` must be an `LRCurve`, as `find_lr` returns. Received: curve={curve!r}"
        )
    ax = _axes(ax, (6.4, 4.0))
    rates, losses = np.asarray(curve.learning_rates), np.asarray(curve.losses)
    smoothed = np.asarray(curve.smoothed_losses)
    ax.plot(rates, losses, ".", color=_FAINT, markersize=4, label="each batch")
    ax.plot(rates[: len(smoothed)], smoothed, color=_TRAIN, linewidth=2, label="smoothed")
    rules = [rule] if isinstance(rule, str) or callable(rule) else list(rule or [])
    for i, one in enumerate(rules):
        _mark_suggestion(ax, curve, one, i)
    ax.set_xscale("log")
    ax.set_xlabel("learning rate")
    ax.set_ylabel("loss")
    ax.set_title("LR curve" + (f" in stage {curve.stage!r}" if curve.stage else ""))
    _limit_height(ax, losses)
    ax.legend(framealpha=0.85, edgecolor="none")
    _tidy(ax)
    return ax


def _mark_suggestion(ax: Any, curve: LRCurve, rule: Any, number: int) -> None:
    name = rule if isinstance(rule, str) else getattr(rule, "__name__", "rule")
    color = _accents()[number % len(_accents())]
    try:
        rate = curve.suggest(rule)
    except ValueError:
        ax.plot([], [], " ", label=f"{name}: no suggestion")
        return
    smoothed = np.asarray(curve.smoothed_losses)
    seen = np.log(curve.learning_rates[: len(smoothed)])
    ax.axvline(rate, color=color, linewidth=1, linestyle="--")
    ax.plot(
        [rate],
        [np.interp(np.log(rate), seen, smoothed)],
        "o",
        color=color,
        label=f"{name}: {rate:.1e}",
    )


def _accents() -> list[str]:
    return [_ACCENT, "#1b9e77", "#7570b3", "#a6761d"]


def _limit_height(ax: Any, losses: np.ndarray) -> None:
    # The batches after divergence may be thousands of times the rest.
    losses = losses[np.isfinite(losses)]
    if len(losses) < 2:
        return
    lowest, start = float(losses.min()), float(losses[: max(1, len(losses) // 2)].max())
    height = max(start - lowest, 1e-12)
    ax.set_ylim(lowest - 0.08 * height, min(losses.max(), start + 0.4 * height) + 0.08 * height)


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
    ax = _axes(ax, (7.0, 1.2 + 0.45 * len(names)))
    from matplotlib.colors import LogNorm

    rates = [rate for stage in dry_run.stages for rate in stage.rates.values() if rate > 0]
    low, high = (min(rates), max(rates)) if rates else (1.0, 1.0)
    if low == high:
        low, high = low / 3, high * 3
    norm, colors = LogNorm(low, high), _color_map()
    for stage in dry_run.stages:
        for row, name in enumerate(names):
            rate = stage.rates.get(name)
            color: Any = _FROZEN
            if name in stage.groups:
                color = _TRAIN if rate is None else "white" if rate == 0 else colors(norm(rate))
            ax.barh(
                row,
                stage.epochs,
                left=stage.first_epoch,
                height=0.86,
                color=color,
                # The hatch has the edge's colour, and would not be seen on white.
                edgecolor=_FAINT if name in stage.groups and rate == 0 else "white",
                linewidth=1,
                hatch="///" if name in stage.groups and rate == 0 else None,
            )
            if name in stage.groups and rate is not None:
                _write_rate(ax, stage, row, rate, color, dry_run.total_epochs)
        if stage.first_epoch:
            ax.axvline(stage.first_epoch, color="black", linewidth=0.8, linestyle=":")
        end = stage.first_epoch + stage.epochs
        _write_stage(ax, stage.name, stage.first_epoch, end, dry_run.total_epochs)
    ax.set_yticks(range(len(names)), names)
    ax.set_xlim(0, dry_run.total_epochs)
    ax.set_ylim(-0.5, len(names) - 0.5)
    ax.set_xlabel("epoch")
    _whole_numbers(ax)
    if rates:
        from matplotlib.cm import ScalarMappable

        bar = ax.figure.colorbar(ScalarMappable(norm, colors), ax=ax, pad=0.02)
        # In one line it would be longer than the axes of three groups.
        bar.set_label("learning rate\n(top of the schedule)")
    keys = {"frozen": _FROZEN} if rates else {"trains": _TRAIN, "frozen": _FROZEN}
    for label, color in keys.items():
        ax.plot([], [], "s", color=color, markersize=9, label=label)
    _legend_below(ax)
    _tidy(ax)
    return ax


def _legend_below(ax: Any) -> None:
    """Puts the legend under the axis label: half an inch down, however tall the axes are."""
    from matplotlib.transforms import ScaledTranslation

    down = ax.transAxes + ScaledTranslation(0, -0.42, ax.figure.dpi_scale_trans)
    ax.legend(
        frameon=False,
        loc="upper right",
        bbox_to_anchor=(1, 0),
        bbox_transform=down,
        ncols=2,
        handletextpad=0.2,
        borderaxespad=0,
    )


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
        pyplot = _pyplot()
        _, grid = pyplot.subplots(
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
            (name, _TRAIN, "training"),
            (f"val_{name}", _VALIDATION, "validation"),
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
        _whole_numbers(ax)
        ax.legend(frameon=False)
        _tidy(ax)
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
            ax.axvline(left, color=_FAINT, linewidth=1, linestyle=":")
        index = indices[start]
        named = plan is not None and index < len(plan.stages)
        name = plan.stages[index].name if plan is not None and named else f"stage {index}"
        _write_stage(ax, name, left, right, len(epochs))


def _write_stage(ax: Any, name: str, start: float, end: float, total: int) -> None:
    """Writes a stage's name above its epochs, slanted where they are few."""
    is_narrow = (end - start) / total < 0.012 * len(name) + 0.03
    ax.text(
        (start + end) / 2,
        1.01,
        name,
        ha="left" if is_narrow else "center",
        va="bottom",
        rotation=35 if is_narrow else 0,
        rotation_mode="anchor",
        fontsize="small",
        transform=ax.get_xaxis_transform(),
    )


# --- Matplotlib -----------------------------------------------------------------------------


def _pyplot() -> Any:
    try:
        import matplotlib.pyplot as pyplot
    except ImportError as error:
        raise ImportError(
            "Plotting needs matplotlib, which is not installed. Run "
            "`pip install 'keras_transfer[plots]'`."
        ) from error
    return pyplot


def _axes(ax: Any, size: tuple[float, float]) -> Any:
    if ax is not None:
        return ax
    _, ax = _pyplot().subplots(figsize=size, layout="constrained")
    return ax


def _color_map() -> Any:
    from matplotlib import colormaps

    return colormaps["viridis"]


def _whole_numbers(ax: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def _tidy(ax: Any) -> None:
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
