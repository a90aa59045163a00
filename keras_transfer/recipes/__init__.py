"""Published ways to fine-tune, as plans to print and edit, and which of them helps.

`compare` trains with each of them and from scratch, and says whether transfer helps.
"""

from keras_transfer.recipes.compare import compare
from keras_transfer.recipes.comparison import Comparison, PairedDifference
from keras_transfer.recipes.plans import (
    full_fine_tuning,
    gradual_unfreezing,
    linear_probe,
    lp_ft,
)

__all__ = [
    "Comparison",
    "PairedDifference",
    "compare",
    "full_fine_tuning",
    "gradual_unfreezing",
    "linear_probe",
    "lp_ft",
]
