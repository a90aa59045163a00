"""Which variables a `no_decay_on` rule exempts from weight decay."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from keras_transfer.optimizers._clone import path_of

NORM_NAMES = ("gamma", "beta", "scale", "offset")


def is_bias(variable: Any) -> bool:
    """Whether a variable is a bias, by its name (`bias`, `gate_bias`)."""
    return str(path_of(variable).rsplit("/", 1)[-1]).split("_")[-1] == "bias"


def is_norm(variable: Any) -> bool:
    """Whether a variable is a normalization's scale or offset, by its name and rank.

    A scale has one number per channel; a matrix that happens to be called `scale` decays.
    """
    name = path_of(variable).rsplit("/", 1)[-1]
    return name in NORM_NAMES and sum(size > 1 for size in variable.shape) <= 1


def exempt(rules: Iterable[str], variable: Any) -> bool:
    """Whether one of the rules exempts the variable."""
    for rule in rules:
        if rule == "bias":
            matched = is_bias(variable)
        elif rule == "norm":
            matched = is_norm(variable)
        else:
            matched = re.fullmatch(rule, path_of(variable)) is not None
        if matched:
            return True
    return False
