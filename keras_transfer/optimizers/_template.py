"""What the user's optimizer is, so that it can be made again: its class and its config."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import keras

from keras_transfer import _checks, _keras_internals

# What the optimizer around the clones does for all of them at once.
DONE_OUTSIDE: dict[str, Any] = {
    "clipnorm": None,
    "clipvalue": None,
    "global_clipnorm": None,
    "use_ema": False,
    "ema_overwrite_frequency": None,
    "loss_scale_factor": None,
    "gradient_accumulation_steps": None,
}


def checked(optimizer: Any) -> keras.optimizers.Optimizer:
    """Resolves names and configs, and refuses optimizers that cannot have per-group rates."""
    if isinstance(optimizer, str | dict):
        try:
            optimizer = keras.optimizers.get(optimizer)
        except ValueError as error:
            if isinstance(optimizer, dict):
                raise
            classes = [n for n, it in vars(keras.optimizers).items() if isinstance(it, type)]
            names = [name.lower() for name in classes if _is_known(name)]
            same = [name for name in classes if name.lower() == optimizer.lower()]
            raise ValueError(
                f"`optimizer` must be the name of a Keras optimizer or an instance of one. "
                f"Received: optimizer={optimizer!r}."
                + (
                    f" Keras knows no such name; pass keras.optimizers.{same[0]}(...)."
                    if same
                    else _checks.did_you_mean(optimizer.lower(), names)
                )
            ) from error
    if isinstance(optimizer, type) or not isinstance(optimizer, keras.optimizers.Optimizer):
        raise TypeError(
            "`optimizer` must be the name of a Keras optimizer or an instance of one. "
            f"Received: optimizer={optimizer!r} (of type {type(optimizer)})"
        )
    name = type(optimizer).__name__
    if isinstance(optimizer, keras.optimizers.MultiOptimizer):
        raise ValueError(
            "`MultiOptimizer` cannot have discriminative learning rates: it has no learning rate "
            "of its own, and it demands a gradient for every variable that it was built with, so "
            "it cannot run with a frozen layer group. Use one optimizer, and `lr_decay` or a dict "
            "of multipliers for the rates."
        )
    method = _keras_internals.overrides_apply(optimizer)
    if method is not None:
        raise ValueError(
            f"`{name}` cannot have discriminative learning rates: it replaces "
            f"`Optimizer.{method}`, and only what `update_step` does can be run group by group. "
            "Move its rule into `update_step`, or use another optimizer."
        )
    return optimizer


def _is_known(name: str) -> bool:
    """Whether Keras makes an optimizer from this name of its own, in lower case."""
    try:
        keras.optimizers.get(name.lower())
    except (ValueError, TypeError, KeyError):  # a module, say, or one with no name, as Lamb
        return False
    return True


class Template:
    """An optimizer's class and config, from which clones and plain optimizers are made.

    Args:
        optimizer: The user's optimizer. It is read, never changed.
    """

    def __init__(self, optimizer: keras.optimizers.Optimizer) -> None:
        self.optimizer_class = type(optimizer)
        with warnings.catch_warnings():
            # Keras warns that a rate given as a lambda is unsafe to load; nothing is saved here.
            warnings.filterwarnings("ignore", ".*includes a `lambda`", UserWarning)
            self.config: dict[str, Any] = optimizer.get_config()
        self.name: str = optimizer.name

    @property
    def divides_by_rate(self) -> bool:
        """Whether a learning rate of 0 gives NaN."""
        return issubclass(self.optimizer_class, keras.optimizers.Ftrl)

    def make_clone(self, name: str, rate: Callable[[], Any]) -> keras.optimizers.Optimizer:
        """Makes an optimizer that only updates: everything in `DONE_OUTSIDE` is off.

        Args:
            name: Name of the clone; its variables' paths begin with it.
            rate: Called for the current learning rate (by the weight decay).
        """
        clone = self.optimizer_class.from_config(
            {**self.config, "learning_rate": rate, "name": name}
        )
        for attribute, off in DONE_OUTSIDE.items():
            setattr(clone, attribute, off)
        _keras_internals.skip_all_reduce(clone)
        return clone

    def make_plain(self, overrides: dict[str, Any]) -> keras.optimizers.Optimizer:
        """Makes an optimizer of the user's class with some entries of its config replaced."""
        known = {key: value for key, value in overrides.items() if key in self.config}
        return self.optimizer_class.from_config({**self.config, **known})


def check_slots_are_found(optimizer: keras.optimizers.Optimizer) -> None:
    """Refuses a built optimizer that keeps state where it cannot be told by variable."""
    found = {id(v) for v in _keras_internals.optimizer_shared_state(optimizer).values()}
    for slots in _keras_internals.optimizer_slots(optimizer).values():
        found.update(id(v) for v in slots if v is not None)
    counter = _keras_internals.step_counter(optimizer)
    lost = [v.path for v in optimizer.variables if id(v) not in found and v is not counter]
    if lost:
        raise ValueError(
            f"`{type(optimizer).__name__}` keeps state that cannot be told by variable: "
            f"{', '.join(lost[:3])}. Keep each slot as a list with one entry per variable, in the "
            "order of `build`, as Keras's own optimizers do."
        )
