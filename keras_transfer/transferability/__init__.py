"""Transferability scores: how well a backbone's features suit a task, without training.

Each is a NumPy function of features or source predictions and labels, and needs one
pass of the backbone over the target examples. LogME and the H-score rank best in
published comparisons; LEEP and NCE need the source model's head.
"""

from __future__ import annotations

from keras_transfer.transferability.h_score import h_score
from keras_transfer.transferability.leep import leep
from keras_transfer.transferability.log_me import log_me
from keras_transfer.transferability.nce import nce
from keras_transfer.transferability.ranking import BackboneRanking, RankedBackbone
from keras_transfer.transferability.trans_rate import trans_rate

__all__ = [
    "BackboneRanking",
    "RankedBackbone",
    "h_score",
    "leep",
    "log_me",
    "nce",
    "trans_rate",
]
