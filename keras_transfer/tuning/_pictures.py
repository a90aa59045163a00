"""Draws a search: the objective against the trial, and against each hyperparameter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

_POINT, _BEST, _FAINT = "#1f77b4", "#c0267e", "#9a9a9a"


def draw(trials: Sequence[Any], oracle: Any, axes: Any = None) -> list[Any]:
    """Draws the pictures of `TuningResult.plot`.

    Args:
        trials: The trials' summaries.
        oracle: The oracle that ran them.
        axes: Matplotlib axes, or `None`.
    """
    done = [trial for trial in trials if trial.score is not None]
    if not done:
        raise ValueError("No trial was completed, so there is nothing to draw.")
    names = _drawn_parameters(done, oracle)
    drawn = _axes(axes, 1 + len(names))
    order = {name: number for number, name in enumerate(oracle.start_order)}  # as they are named
    _draw_trials(drawn[0], trials, order, oracle.objective)
    for ax, name in zip(drawn[1:], names, strict=True):
        _draw_parameter(ax, done, name, oracle)
    for ax in drawn:
        _tidy(ax)
    return drawn


def _drawn_parameters(done: Sequence[Any], oracle: Any) -> list[str]:
    found = []
    for one in oracle.get_space().space:
        values = {trial.values.get(one.name) for trial in done} - {None}
        if len(values) > 1 and one.name not in found:
            found.append(one.name)
    return found


def _axes(axes: Any, count: int) -> list[Any]:
    if axes is None:
        pyplot = _pyplot()
        columns = min(3, count)
        rows = -(-count // columns)
        figure, grid = pyplot.subplots(
            rows,
            columns,
            figsize=(4.2 * columns, 3.4 * rows),
            squeeze=False,
            layout="constrained",
        )
        for left in grid.ravel()[count:]:
            figure.delaxes(left)
        return list(grid.ravel()[:count])
    found = list(np.ravel(axes))
    if len(found) != count:
        raise ValueError(f"`axes` must hold {count} axes, one for each picture. Got {len(found)}")
    return found


def _draw_trials(ax: Any, trials: Sequence[Any], order: dict[str, int], objective: Any) -> None:
    done = sorted((order[t.trial_id], t.score) for t in trials if t.score is not None)
    at, scores = (np.array(column) for column in zip(*done, strict=True))
    running = np.maximum if objective.direction == "max" else np.minimum
    best = running.accumulate(scores)
    ax.step(at, best, where="post", color=_BEST, linewidth=1.5, label="best so far")
    ax.plot(at, scores, "o", color=_POINT, markersize=5, label="completed")
    place = int(np.argmax(scores == best[-1]))
    ax.plot(at[place], scores[place], "o", color=_BEST, markersize=8, label="best trial")
    for status, marker in (("pruned", "v"), ("failed", "x")):
        places = [order[t.trial_id] for t in trials if t.status == status]
        if places:
            # They have no score: along the lower edge.
            ax.plot(
                places,
                [0.03] * len(places),
                marker,
                color=_FAINT,
                transform=ax.get_xaxis_transform(),
                label=status,
            )
    ax.set_xlabel("trial")
    ax.set_ylabel(objective.name)
    ax.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    ax.legend(frameon=False, fontsize="small")


def _draw_parameter(ax: Any, done: Sequence[Any], name: str, oracle: Any) -> None:
    drawn = [trial for trial in done if trial.values.get(name) is not None]
    values = [trial.values[name] for trial in drawn]
    scores = [trial.score for trial in drawn]
    if any(isinstance(value, str | bool) for value in values):
        labels = sorted({str(value) for value in values})
        places: list[Any] = [labels.index(str(value)) for value in values]
        ax.set_xticks(range(len(labels)), labels)
        ax.margins(x=0.2)
    else:
        places = values
        _ticks(ax, values, is_log=_is_log(oracle, name))
    ax.plot(places, scores, "o", color=_POINT, markersize=5)
    # The summaries are sorted: the first one is the best.
    if drawn[0] is done[0]:
        ax.plot(places[:1], scores[:1], "o", color=_BEST, markersize=8)
    ax.set_xlabel(name)
    ax.set_ylabel(oracle.objective.name)


def _ticks(ax: Any, values: Sequence[Any], *, is_log: bool) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    if is_log:
        ax.set_xscale("log")
        # Labels at each power of ten alone would often be one, and at each step too many.
        ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0e}"))
        ax.xaxis.set_minor_formatter(NullFormatter())
    elif all(isinstance(value, int) for value in values):
        ax.xaxis.get_major_locator().set_params(integer=True)


def _is_log(oracle: Any, name: str) -> bool:
    spaces = [one for one in oracle.get_space().space if one.name == name]
    return any(getattr(one, "sampling", None) == "log" for one in spaces)


def _tidy(ax: Any) -> None:
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)


def _pyplot() -> Any:
    try:
        import matplotlib.pyplot as pyplot
    except ImportError as error:
        raise ImportError(
            "Plotting needs matplotlib, which is not installed. Run "
            "`pip install 'keras_transfer[plots]'`."
        ) from error
    return pyplot
