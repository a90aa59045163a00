"""Carry weights from model to model: by name, from files, and as averages."""

from __future__ import annotations

from keras_transfer.weights.averaging import (
    Soup,
    average_weights,
    greedy_soup,
    interpolate_weights,
)
from keras_transfer.weights.naming import NamedWeight, named_weights
from keras_transfer.weights.report import TransferredWeight, TransferReport
from keras_transfer.weights.transfer import transfer_weights

__all__ = [
    "NamedWeight",
    "Soup",
    "TransferReport",
    "TransferredWeight",
    "average_weights",
    "greedy_soup",
    "interpolate_weights",
    "named_weights",
    "transfer_weights",
]
