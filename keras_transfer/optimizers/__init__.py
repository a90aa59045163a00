"""Optimizers: any Keras optimizer with a learning rate and a step count per layer group."""

from keras_transfer.lr_groups import spread_to_decay
from keras_transfer.optimizers.discriminative import (
    DiscriminativeOptimizer,
    discriminative,
    find_discriminative,
)

__all__ = ["DiscriminativeOptimizer", "discriminative", "find_discriminative", "spread_to_decay"]
