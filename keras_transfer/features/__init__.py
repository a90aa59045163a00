"""The feature cache: frozen layers run once."""

from keras_transfer.features.cache import FeatureCache

__all__ = ["FeatureCache"]
