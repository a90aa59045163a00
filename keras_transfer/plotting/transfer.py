"""Pictures of what transfers: strategies against each other, backbones, and layers."""

from __future__ import annotations

from typing import Any

import numpy as np

from keras_transfer import _checks
from keras_transfer.layerwise_scores import LayerwiseScores
from keras_transfer.plotting._axes import ACCENT, FAINT, TRAIN, new_axes, tidy
from keras_transfer.recipes.comparison import SCRATCH, Comparison
from keras_transfer.transferability import BackboneRanking


def plot_comparison(comparison: Comparison, ax: Any = None) -> Any:
    """Draws the gain of each strategy over training from scratch, seed by seed.

    Args:
        comparison: What `keras_transfer.recipes.compare` returned.
        ax: Matplotlib axes to draw into; `None` for new ones.

    Returns:
        The axes. A diamond is a mean with its confidence interval (none for one seed), a
        dot is a seed, and the band is the margin within which differences do not count.

    Raises:
        ImportError: If matplotlib is not installed.

    Example:

    >>> from keras_transfer import plotting
    >>> from keras_transfer.recipes import Comparison
    >>> found = Comparison(
    ...     metric="accuracy", mode="max", seeds=(0, 1),
    ...     scores={"scratch": (0.7, 0.72), "lp_ft": (0.8, 0.83)},
    ...     seconds={"scratch": (3, 3), "lp_ft": (2, 2)})
    >>> ax = plotting.plot_comparison(found)
    >>> [label.get_text() for label in ax.get_yticklabels()]
    ['lp_ft']
    """
    if not isinstance(comparison, Comparison):
        raise TypeError(
            "`comparison` must be a `Comparison`, as `recipes.compare` returns. Received: "
            f"comparison={comparison!r}"
        )
    names = comparison.strategies
    ax = new_axes(ax, (6.8, 1.8 + 0.45 * len(names)))
    sign = 1.0 if comparison.mode == "max" else -1.0
    scratch = np.array(comparison.scores[SCRATCH])
    reach = comparison.margin
    for row, name in enumerate(names):
        gains = sign * (np.array(comparison.scores[name]) - scratch)
        found = comparison.difference(name)
        reach = max(reach, float(np.abs(gains).max()))
        ax.plot(gains, np.full(gains.size, row + 0.18), "o", color=FAINT, markersize=4)
        if np.isfinite(found.half_width):
            ax.plot([found.low, found.high], [row, row], color=TRAIN, linewidth=2)
        ax.plot([found.mean], [row], "D", color=TRAIN, markersize=6)
        ax.annotate(
            found.verdict,
            (1.01, row),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize="small",
        )
    ax.axvspan(-comparison.margin, comparison.margin, color=FAINT, alpha=0.2, linewidth=0)
    ax.axvline(0, color="black", linewidth=0.8)
    # An interval of two seeds may be many times what there is to see.
    low, high = ax.get_xlim()
    ax.set_xlim(max(low, -4 * reach), min(high, 4 * reach))
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.set_xlabel(f"gain in {comparison.metric} over {SCRATCH}")
    ax.set_title(comparison.conclusion.partition(" (")[0].rstrip("."), fontsize="medium")
    tidy(ax)
    return ax


def plot_ranking(ranking: BackboneRanking, ax: Any = None, score: str | None = None) -> Any:
    """Draws the transferability score of each backbone as a bar, the best on top.

    Args:
        ranking: What `keras_transfer.rank_backbones` returned.
        ax: Matplotlib axes to draw into; `None` for new ones.
        score: The score to draw; `None` for the one that it is ranked by.

    Returns:
        The axes. Beside each bar stand the backbone's parameters and the time of its pass.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If the ranking has no such score.

    Example:

    >>> from keras_transfer import plotting
    >>> from keras_transfer.transferability import BackboneRanking, RankedBackbone
    >>> ranking = BackboneRanking("log_me", (
    ...     RankedBackbone("small", {"log_me": -0.3}, 1.5, 2_000_000, 1280),
    ...     RankedBackbone("large", {"log_me": -0.1}, 4.0, 24_000_000, 2048)))
    >>> [label.get_text() for label in plotting.plot_ranking(ranking).get_yticklabels()]
    ['large', 'small']
    """
    if not isinstance(ranking, BackboneRanking):
        raise TypeError(
            "`ranking` must be a `BackboneRanking`, as `rank_backbones` returns. Received: "
            f"ranking={ranking!r}"
        )
    score = ranking.rank_by if score is None else score
    _checks.choice(score, "score", ranking.backbones[0].scores)
    ax = new_axes(ax, (6.8, 1.2 + 0.45 * len(ranking.backbones)))
    best = max(one.scores[score] for one in ranking.backbones)
    for row, one in enumerate(ranking.backbones):
        value = one.scores[score]
        ax.barh(row, value, height=0.7, color=ACCENT if value == best else TRAIN)
        ax.annotate(
            f"{value:.3f}   {one.parameters / 1e6:.2f} M parameters, {one.seconds:.1f} s",
            (1.01, row),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize="small",
        )
    ax.axvline(0, color="black", linewidth=0.8)
    ax.set_yticks(range(len(ranking.backbones)), [one.name for one in ranking.backbones])
    ax.set_ylim(len(ranking.backbones) - 0.5, -0.5)
    ax.set_xlabel(f"{score} (higher is better)")
    tidy(ax)
    return ax


# Marker, colour and line of each treatment: the source network's are red, the control's blue,
# and those that train on are pale and dashed, as in the paper.
_TREATMENTS = {
    "AnB": ("D", "#b2182b", "-"),
    "AnB+": ("P", "#ef8a62", "--"),
    "BnB": ("o", "#2166ac", "-"),
    "BnB+": ("s", "#67a9cf", "--"),
}


def plot_layerwise(scores: LayerwiseScores, ax: Any = None) -> Any:
    r"""Draws scores against the number of copied layer groups, as in the paper's figure.

    Args:
        scores: What `keras_transfer.layerwise_transferability` returned.
        ax: Matplotlib axes to draw into; `None` for new ones.

    Returns:
        The axes. A line joins the means of a treatment, a band is plus and minus one
        standard deviation over seeds, a dot is a seed; n = 0 is training from scratch.

    Raises:
        ImportError: If matplotlib is not installed.

    Example:

    >>> from keras_transfer import plotting
    >>> from keras_transfer.layerwise_scores import LayerwiseScores
    >>> found = LayerwiseScores(
    ...     metric="accuracy", mode="max", groups=("stem", "top"), seeds=(0, 1),
    ...     base=(0.80, 0.82), scores={"AnB": {1: (0.81, 0.83), 2: (0.70, 0.73)}})
    >>> [label.get_text() for label in plotting.plot_layerwise(found).get_xticklabels()]
    ['0\nbase', '1\nstem', '2\ntop']
    """
    if not isinstance(scores, LayerwiseScores):
        raise TypeError(
            "`scores` must be `LayerwiseScores`, as `layerwise_transferability` returns. Received: "
            f"scores={scores!r}"
        )
    depths = [0, *scores.depths]
    ax = new_axes(ax, (max(5.6, 1.6 + 0.9 * len(depths)), 4.2))
    for number, (treatment, by_n) in enumerate(scores.scores.items()):
        marker, color, line = _TREATMENTS[treatment]
        at = [0, *sorted(by_n)]
        values = np.array([scores.at(treatment, n) for n in at])
        means = values.mean(axis=1)
        ax.plot(at, means, line, color=color, marker=marker, markersize=6, label=treatment)
        if values.shape[1] > 1:
            spread = values.std(axis=1, ddof=1)
            ax.fill_between(at, means - spread, means + spread, color=color, alpha=0.12, lw=0)
        # Beside each other, so that the seeds of one treatment do not hide another's.
        aside = 0.06 * (number - (len(scores.scores) - 1) / 2)
        for n, row in zip(at[1:], values[1:], strict=True):
            ax.plot(np.full(row.size, n + aside), row, ".", color=color, markersize=4, alpha=0.7)
    ax.plot(np.zeros(len(scores.base)), scores.base, ".", color="black", markersize=4)
    ax.axhline(np.mean(scores.base), color=FAINT, linewidth=0.8, linestyle=":")
    names = ["base", *(scores.groups[n - 1] for n in scores.depths)]
    ax.set_xticks(depths, [f"{n}\n{name}" for n, name in zip(depths, names, strict=True)])
    for label in ax.get_xticklabels():
        label.set_fontsize("small")
    ax.set_xlabel("layer groups copied (n), and the last of them")
    ax.set_ylabel(f"test {scores.metric}")
    ax.legend(frameon=False)
    tidy(ax)
    return ax
