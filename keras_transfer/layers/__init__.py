"""Layers of a transfer model: the wrapped backbone, and heads."""

from keras_transfer.layers.backbone import PretrainedBackbone
from keras_transfer.layers.heads import ClassificationHead, RegressionHead

__all__ = ["ClassificationHead", "PretrainedBackbone", "RegressionHead"]
