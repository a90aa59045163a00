"""Learning-rate schedules, as functions of the step and as Keras schedules."""

from keras_transfer.schedules.functions import (
    constant,
    cosine,
    one_cycle,
    slanted_triangular,
    warmup_cosine,
)
from keras_transfer.schedules.keras_schedules import (
    Constant,
    Cosine,
    OneCycle,
    SlantedTriangular,
    WarmupCosine,
    shape_schedule,
)

__all__ = [
    "Constant",
    "Cosine",
    "OneCycle",
    "SlantedTriangular",
    "WarmupCosine",
    "constant",
    "cosine",
    "one_cycle",
    "shape_schedule",
    "slanted_triangular",
    "warmup_cosine",
]
