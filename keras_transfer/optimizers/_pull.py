"""L2-SP inside the step: the pull of a clone's variables to where they started."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_transfer import _keras_internals
from keras_transfer.regularizers import L2SP


def checked(regularizer: Any) -> L2SP | None:
    """Returns an optimizer's regularizer, or says what it may be."""
    if regularizer is None:
        return None
    if not isinstance(regularizer, L2SP):
        raise TypeError(
            "An optimizer's `regularizer` must be a `keras_transfer.regularizers.L2SP`; others "
            f"belong to layers. Received: regularizer={regularizer!r}"
        )
    if regularizer.reference is not None:
        raise ValueError(
            "In an optimizer, `L2SP` pulls each weight to its own start, so it takes no "
            f"`reference`. Received one of shape {regularizer.reference.shape}."
        )
    return regularizer


def pull(
    variables: Sequence[Any], starts: Sequence[keras.Variable], strength: float, rate: Any
) -> None:
    """Moves variables towards their starts: the proximal step of the penalty.

    Implicit, so that a strength of any size moves them to their starts and not beyond.
    """

    def on_all_replicas(strategy: tf.distribute.Strategy, rate: Any) -> None:
        for variable, start in zip(variables, starts, strict=True):
            value = variable.value if isinstance(variable, keras.Variable) else variable
            strategy.extended.update(value, _step, args=(start.value, rate), group=False)

    def _step(variable: Any, start: Any, rate: Any) -> Any:
        # A strength that is infinite in the rate's dtype would make NaN of a rate of zero.
        finite = min(strength, float(rate.dtype.max))
        kept = tf.cast(1.0 / (1.0 + rate * finite), variable.dtype)
        return variable.assign(start + (variable - start) * kept)

    _keras_internals.merge_replicas(on_all_replicas, rate)
