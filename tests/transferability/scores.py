"""Data and claims shared by the tests of the transferability scores."""

from __future__ import annotations

import numpy as np


def separable(samples=90, classes=3, width=5, noise=0.3, seed=0):
    """Features whose class means differ, and their labels."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(samples) % classes)
    means = 2 * rng.normal(size=(classes, width))
    return means[labels] + noise * rng.normal(size=(samples, width)), labels


def noise(samples=90, classes=3, width=5, seed=0):
    """Features that have nothing to do with their labels."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(samples, width)), rng.permutation(np.arange(samples) % classes)


def rotation(width, seed=0):
    """A random orthogonal matrix."""
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(width, width)))[0]


def soft_predictions(samples=80, source_classes=6, classes=3, strength=2.0, seed=0):
    """Source probabilities that lean on the target label by `strength`, and the labels."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(samples) % classes)
    logits = rng.normal(size=(samples, source_classes))
    logits[np.arange(samples), labels] += strength
    logits[np.arange(samples), labels + classes] += strength / 2
    odds = np.exp(logits)
    return odds / odds.sum(axis=1, keepdims=True), labels
