"""Fine-tuning of pretrained Keras models: gradual unfreezing in one `model.fit`."""

from keras_transfer import (
    callbacks,
    data,
    distribute,
    features,
    layers,
    optimizers,
    plotting,
    recipes,
    regularizers,
    schedules,
    transferability,
    tuning,
    weights,
)
from keras_transfer.dry_run import describe
from keras_transfer.layer_groups import LayerGroup, LayerGroups, backbone_groups
from keras_transfer.layerwise import layerwise_transferability
from keras_transfer.layerwise_scores import LayerwiseScores
from keras_transfer.lr_curve import LRCurve
from keras_transfer.lr_finder import find_lr
from keras_transfer.model import TransferModel
from keras_transfer.plan import Stage, UnfreezingPlan
from keras_transfer.rank_backbones import rank_backbones

__version__ = "0.1.0"

__all__ = [
    "LRCurve",
    "LayerGroup",
    "LayerGroups",
    "LayerwiseScores",
    "Stage",
    "TransferModel",
    "UnfreezingPlan",
    "backbone_groups",
    "callbacks",
    "data",
    "describe",
    "distribute",
    "features",
    "find_lr",
    "layers",
    "layerwise_transferability",
    "optimizers",
    "plotting",
    "rank_backbones",
    "recipes",
    "regularizers",
    "schedules",
    "transferability",
    "tuning",
    "weights",
]
