"""Pictures of plans, histories, LR curves and what transfers. Needs the extra `plots`.

Each function draws into axes that it is given or makes, and returns them: save the
picture with `ax.figure.savefig(...)`.
"""

from keras_transfer.plotting.histories import plot_history
from keras_transfer.plotting.lr_curves import plot_lr_curve
from keras_transfer.plotting.plans import plot_plan
from keras_transfer.plotting.transfer import (
    plot_comparison,
    plot_layerwise,
    plot_ranking,
)

__all__ = [
    "plot_comparison",
    "plot_history",
    "plot_layerwise",
    "plot_lr_curve",
    "plot_plan",
    "plot_ranking",
]
