"""Layers: heads for pretrained backbones."""

from keras_transfer.layers.heads import ClassificationHead, Head, RegressionHead

__all__ = ["ClassificationHead", "Head", "RegressionHead"]
