"""When to end a trial early, from how other trials did in the same stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from keras_transfer import _checks


class Pruning:
    """What decides after each epoch whether a trial goes on; the base of the package's rules.

    A trial is compared with others in the same stage only, after as many epochs of it: where
    layers were just unfrozen, a metric that was good for a head alone says nothing.
    """

    def is_hopeless(self, own: Sequence[float], others: Sequence[Sequence[float]]) -> bool:
        """Whether a trial is to end.

        Args:
            own: The objective after each epoch that the trial has spent in its stage; larger is
                better.
            others: The same of other trials that have been in the same stage, of at least as
                many epochs.
        """
        raise NotImplementedError


class MedianPruning(Pruning):
    """Ends a trial whose best value in a stage is worse than the median of the others' means.

    Args:
        min_trials: Trials to compare with, without which none ends. At least 1.
        min_epochs: Epochs in a stage before which none ends. At least 1.

    Example:

    >>> from keras_transfer.tuning import MedianPruning
    >>> others = [[0.5, 0.6], [0.6, 0.7], [0.7, 0.8], [0.8, 0.9]]
    >>> MedianPruning().is_hopeless([0.4, 0.5], others)
    True
    >>> MedianPruning().is_hopeless([0.7, 0.75], others)
    False

    Reference:
        - [Golovin et al., 2017](https://dl.acm.org/doi/10.1145/3097983.3098043), section 3.2.2
    """

    def __init__(self, min_trials: int = 4, min_epochs: int = 1) -> None:
        self.min_trials = _checks.integer(min_trials, "min_trials", minimum=1)
        self.min_epochs = _checks.integer(min_epochs, "min_epochs", minimum=1)

    def is_hopeless(self, own: Sequence[float], others: Sequence[Sequence[float]]) -> bool:
        if len(own) < self.min_epochs or len(others) < self.min_trials:
            return False
        means = [float(np.mean(one[: len(own)])) for one in others]
        return max(own) < float(np.median(means))


class SuccessiveHalving(Pruning):
    """Ends a trial that is not among the best `1 / factor` at a rung.

    Rungs are after `min_epochs`, `min_epochs * factor`, `min_epochs * factor**2`, ... epochs of
    a stage. Trials need not wait for each other, so this is the asynchronous kind (ASHA).

    Args:
        factor: One of so many trials passes a rung. At least 2.
        min_epochs: Epochs in a stage at the first rung. At least 1.

    Example:

    >>> from keras_transfer.tuning import SuccessiveHalving
    >>> SuccessiveHalving(factor=2).is_hopeless([0.4], [[0.5], [0.6], [0.3]])
    True

    Reference:
        - [Li et al., 2020](https://arxiv.org/abs/1810.05934)
    """

    def __init__(self, factor: int = 3, min_epochs: int = 1) -> None:
        self.factor = _checks.integer(factor, "factor", minimum=2)
        self.min_epochs = _checks.integer(min_epochs, "min_epochs", minimum=1)

    def is_hopeless(self, own: Sequence[float], others: Sequence[Sequence[float]]) -> bool:
        if not self._is_rung(len(own)) or len(others) + 1 < self.factor:
            return False
        best = [max(one[: len(own)]) for one in others]
        better = sum(value > max(own) for value in best)
        return better >= max(1, (len(others) + 1) // self.factor)

    def _is_rung(self, epochs: int) -> bool:
        rung = self.min_epochs
        while rung < epochs:
            rung *= self.factor
        return rung == epochs


RULES = {"median": MedianPruning, "halving": SuccessiveHalving}


def rule_of(given: Any) -> Pruning | None:
    """Returns the rule that the user means.

    Raises:
        TypeError: If it is none.
        ValueError: If it is an unknown name.
    """
    if given is None or isinstance(given, Pruning):
        return given
    if isinstance(given, str):
        return RULES[_checks.choice(given, "pruning", RULES)]()
    raise TypeError(
        "`pruning` must be 'median', 'halving', None, or a rule such as MedianPruning(). "
        f"Received: pruning={given!r}"
    )


def values_in_stages(metrics: Any, objective: Any) -> dict[int, list[float]]:
    """Returns a trial's objective by epoch, for each stage that it has been in.

    A stage is known by how many parameters train in it: of two trials, the second stage of one
    may be like the third of the other.

    Args:
        metrics: The trial's `MetricsTracker`.
        objective: The `keras_tuner.Objective`.

    Returns:
        Values of which larger is better.
    """
    found: dict[int, list[float]] = {}
    if not (metrics.exists("trainable_parameters") and metrics.exists(objective.name)):
        return found
    trains: Mapping[int, float] = {
        one.step: one.mean() for one in metrics.get_history("trainable_parameters")
    }
    sign = 1.0 if objective.direction == "max" else -1.0
    for one in metrics.get_history(objective.name):
        if one.step in trains:
            found.setdefault(int(trains[one.step]), []).append(sign * one.mean())
    return found
