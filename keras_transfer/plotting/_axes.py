"""What all pictures share: colours, axes, the few parts of matplotlib that they need."""

from __future__ import annotations

from typing import Any

TRAIN, VALIDATION, ACCENT, FROZEN, FAINT = (
    "#1f77b4",
    "#d95f02",
    "#c0267e",
    "#e9e9e9",
    "#9a9a9a",
)
ACCENTS = (ACCENT, "#1b9e77", "#7570b3", "#a6761d")


def pyplot() -> Any:
    """Returns `matplotlib.pyplot`, or says how to install it."""
    try:
        import matplotlib.pyplot as module
    except ImportError as error:
        raise ImportError(
            "Plotting needs matplotlib, which is not installed. Run "
            "`pip install 'keras_transfer[plots]'`."
        ) from error
    return module


def new_axes(ax: Any, size: tuple[float, float]) -> Any:
    """Returns the axes that were given, or new ones of a size in inches."""
    if ax is not None:
        return ax
    _, ax = pyplot().subplots(figsize=size, layout="constrained")
    return ax


def color_map() -> Any:
    """Returns the colours of learning rates."""
    from matplotlib import colormaps

    return colormaps["viridis"]


def whole_numbers(ax: Any) -> None:
    """Lets the horizontal axis count in whole numbers."""
    from matplotlib.ticker import MaxNLocator

    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def tidy(ax: Any) -> None:
    """Takes away the frame's upper and right side."""
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)


def write_stage(ax: Any, name: str, start: float, end: float, total: int) -> None:
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


def legend_below(ax: Any) -> None:
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
