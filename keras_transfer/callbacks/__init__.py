"""Callbacks for `model.fit`."""

from keras_transfer.callbacks.auto_surgical import AutoSurgical
from keras_transfer.callbacks.gradual_unfreezing import GradualUnfreezing
from keras_transfer.callbacks.resumable_training import ResumableTraining

__all__ = ["AutoSurgical", "GradualUnfreezing", "ResumableTraining"]
