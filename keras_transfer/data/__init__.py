"""Data for transfer learning: load it, describe it, take a fair part of it."""

from __future__ import annotations

from keras_transfer.data.few_shot import few_shot
from keras_transfer.data.load import load
from keras_transfer.data.subset import subset
from keras_transfer.data.task_spec import TaskSpec

__all__ = ["TaskSpec", "few_shot", "load", "subset"]
