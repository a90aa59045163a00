"""The problem that PyTorch and Keras both solve: three layer groups, two unfreezings.

Plain numbers only, so that both sides share it. All constants are exact in float32: Keras
keeps its learning rate, betas and weight decay in that type, whatever the variables have.
"""

import numpy as np

SHAPES = {
    "stem/kernel": (4, 3),
    "stem/bias": (3,),
    "body/kernel": (3, 3),
    "body/bias": (3,),
    "head/kernel": (3, 2),
    "head/bias": (2,),
}
MULTIPLIERS = {"stem": 0.25, "body": 0.5, "head": 1.0}
BASE_RATE = 2.0**-7
WEIGHT_DECAY = 2.0**-4
BETA_1, BETA_2 = 0.875, 1.0 - 2.0**-7
MOMENTUM = 0.875
EPSILON = 1e-12  # Keras adds it before the bias correction, PyTorch after it
# Which variables train until which step. `head/bias` rests in the second stage, and
# `stem/bias` begins before the rest of its group: each variable has its own count.
STAGES = (
    (60, ("head/kernel", "head/bias")),
    (120, ("stem/bias", "body/kernel", "body/bias", "head/kernel")),
    (200, tuple(SHAPES)),
)
RECORDED = (1, 2, 10, 60, 61, 62, 70, 120, 121, 122, 130, 200)
OPTIMIZERS = ("adam", "adamw", "nadam", "sgd_momentum", "sgd_nesterov")


def start():
    """Returns the first values, with visible spread."""
    rng = np.random.default_rng(3)
    return {name: rng.normal(size=shape) for name, shape in SHAPES.items()}


def gradient(name, value, step):
    """Returns the gradient of a bowl whose bottom moves with time."""
    index = list(SHAPES).index(name)
    phase = np.arange(value.size, dtype="float64").reshape(value.shape)
    return value * (0.5 + 0.25 * index) + np.sin(0.7 * step + phase + index)
