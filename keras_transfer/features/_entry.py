"""How cached features travel: a dictionary of tensors that says where the model is to start.

Cached data carries its own entry point, so that raw inputs keep working at the same time: a
callback that calls `model.predict(images)` in the middle of a cached run is safe.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from keras_transfer import _keras_internals

PREFIX = "keras_transfer/features@"
POOLED = "pooled"


@dataclasses.dataclass(frozen=True, order=True)
class EntryPoint:
    """A place in a `TransferModel` from which cached features can be run on.

    Attributes:
        start: Number of the backbone's layer groups that lie before it.
        pooled: Whether the head's pooling lies before it, too.
    """

    start: int
    pooled: bool = False

    @property
    def key(self) -> str:
        """The key of the first tensor in the dictionary."""
        return f"{PREFIX}{POOLED if self.pooled else self.start}"

    def owns(self, name: str) -> bool:
        """Whether a field of the dictionary with this name belongs to this entry point."""
        return name == self.key or name.startswith(f"{self.key}/")

    def pack(self, tensors: Sequence[Any]) -> dict[str, Any]:
        """Returns the dictionary that stands for tensors which are alive here, masks with them."""
        fields = {}
        for number, tensor in enumerate(tensors):
            name = f"{self.key}/{number}" if number else self.key
            fields[name] = tensor
            mask = _keras_internals.get_mask(tensor)
            if mask is not None:
                fields[f"{name}/mask"] = mask
        return fields


def is_entry(inputs: Any) -> bool:
    """Whether a model's inputs are cached features rather than raw inputs."""
    return isinstance(inputs, Mapping) and any(
        isinstance(name, str) and name.startswith(PREFIX) for name in inputs
    )


def unpack(inputs: Mapping[str, Any], n_groups: int) -> tuple[EntryPoint, list[Any]]:
    """Returns the entry point that a dictionary stands for, and the tensors that are alive there.

    Args:
        inputs: What `EntryPoint.pack` returned.
        n_groups: How many layer groups the backbone has.
    """
    first = min(inputs, key=len)
    place = first.removeprefix(PREFIX)
    pooled = place == POOLED
    point = EntryPoint(n_groups if pooled else int(place), pooled)
    tensors: list[Any] = []
    while True:
        name = f"{first}/{len(tensors)}" if tensors else first
        if name not in inputs:
            return point, tensors
        if f"{name}/mask" in inputs:
            _keras_internals.set_mask(inputs[name], inputs[f"{name}/mask"])
        tensors.append(inputs[name])
