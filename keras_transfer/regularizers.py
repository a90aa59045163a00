"""Regularizers that know where training started."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from keras_transfer import _checks


@keras.saving.register_keras_serializable(package="keras_transfer")
class L2SP(keras.regularizers.Regularizer):
    r"""L2-SP: pulls weights towards their pretrained values instead of towards zero.

    Use it with few labels, where fine-tuning would otherwise forget what the backbone knows.
    In the optimizer it takes the place of weight decay for the backbone:

    ```python
    import keras
    import keras_transfer as ktf

    optimizer = ktf.optimizers.discriminative(
        keras.optimizers.AdamW(1e-3), regularizer=ktf.regularizers.L2SP(0.1))
    ```

    There it is decoupled, as AdamW's decay is: after each update of weights `w` with the
    layer group's learning rate `lr`, `w <- start + (w - start) / (1 + lr * strength)`, which is
    the penalty's proximal step. So its strength is the same under any optimizer (as a term of
    the loss, Adam would divide it by the size of the gradients), and no strength is too large.
    `start` is what a weight was when its group first trained; it is kept in the optimizer's
    state, one copy of the weights that train, and saved with it. The head is not pulled: its
    start means nothing. With strength 0 training is plain fine-tuning, bit for bit.

    With a `reference`, it is an ordinary Keras regularizer for one weight of any model, which
    adds `strength / 2 * sum((w - reference) ** 2)` to the loss.

    The paper's gains are from its own comparison with plain weight decay; with many labels
    expect little.

    Args:
        strength: Strength of the pull, at least 0; the paper's `alpha`, tried there from
            0.001 to 1. Under a learning rate of 1e-3 a weight left alone goes back by a
            thousandth of `strength` a step.
        reference: Values that the weight is pulled to, of its shape; only as a Keras
            regularizer. It is saved in the layer's config.

    Raises:
        TypeError: If `strength` is no number.
        ValueError: If `strength` is negative or not finite, or `reference` is not finite.

    Example:

    >>> import numpy as np
    >>> from keras_transfer.regularizers import L2SP
    >>> penalty = L2SP(0.5, reference=np.array([1.0, 2.0]))
    >>> float(penalty(np.array([1.0, 4.0], "float32")))
    1.0

    Reference:
        - [Li et al., 2018](https://arxiv.org/abs/1802.01483)
        - [Zhuang et al., 2022](https://arxiv.org/abs/2202.00089), decoupled decay as a proximal
          step
    """

    def __init__(self, strength: float = 0.01, reference: Any = None) -> None:
        self.strength = _checks.number(strength, "strength", minimum=0)
        self.reference = None
        if reference is not None:
            self.reference = np.array(keras.ops.convert_to_numpy(reference))
            if not np.isfinite(self.reference).all():
                raise ValueError(
                    "`reference` must be finite. Received: "
                    f"{int((~np.isfinite(self.reference)).sum())} values that are NaN or infinite"
                )

    def __call__(self, x: Any) -> Any:
        if self.reference is None:
            raise ValueError(
                "As a Keras regularizer, `L2SP` needs the `reference` to pull to. To pull a whole "
                "backbone to its pretrained weights, give it to the optimizer: "
                "discriminative(optimizer, regularizer=L2SP(...))."
            )
        if tuple(x.shape) != self.reference.shape:
            raise ValueError(
                f"`reference` must have the weight's shape {tuple(x.shape)}. Received: "
                f"reference.shape={self.reference.shape}"
            )
        reference = keras.ops.cast(self.reference, x.dtype)
        return 0.5 * self.strength * keras.ops.sum(keras.ops.square(x - reference))

    def get_config(self) -> dict[str, Any]:
        return {"strength": self.strength, "reference": self.reference}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> L2SP:
        reference = config.get("reference")
        if isinstance(reference, dict):
            reference = keras.saving.deserialize_keras_object(reference)
        return cls(config["strength"], reference)
