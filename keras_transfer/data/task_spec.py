"""What a model must know about the data that it is to learn."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class TaskSpec:
    """Facts about a data set that decide the head, the loss and the metrics.

    Made by `data.load`; plain data, JSON in and out.

    Args:
        name: What the data set is called.
        input_shape: Shape of one example's input, without the batch; `None` where
            examples differ.
        input_dtype: Its dtype as the model receives it.
        num_classes: Number of classes, or `None` for other targets.
        class_names: Names of the classes in the order of their labels.
        loss: Suggested loss for `compile`, or `None` where the labels do not tell. It
            takes whole-number labels and a head with `num_classes` softmax outputs,
            as `ClassificationHead(num_classes)` has.
        metrics: Suggested metrics for `compile`.
        examples: Number of examples in each split that was loaded, by the split's
            name.

    Example:

    >>> from keras_transfer.data import TaskSpec
    >>> spec = TaskSpec("pets", (96, 96, 3), num_classes=2, class_names=("cat", "dog"))
    >>> TaskSpec.from_json(spec.to_json()) == spec
    True
    """

    name: str
    input_shape: tuple[int | None, ...]
    input_dtype: str = "float32"
    num_classes: int | None = None
    class_names: tuple[str, ...] = ()
    loss: str | None = None
    metrics: tuple[str, ...] = ()
    examples: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for field in ("input_shape", "class_names", "metrics"):
            object.__setattr__(self, field, tuple(getattr(self, field)))
        object.__setattr__(self, "examples", dict(self.examples))
        if self.class_names and self.num_classes != len(self.class_names):
            raise ValueError(
                "`class_names` must have one name for each class. "
                f"Received: num_classes={self.num_classes}, {len(self.class_names)} names"
            )

    def get_config(self) -> dict[str, Any]:
        """Returns the facts as a dictionary of plain values."""
        return {
            field: list(value) if isinstance(value, tuple) else value
            for field, value in dataclasses.asdict(self).items()
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> TaskSpec:
        """Makes a spec from `get_config`'s result."""
        if not isinstance(config, Mapping) or "name" not in config:
            raise ValueError(f"A task's config must hold `name`. Received: {config!r}")
        return cls(**config)

    def to_json(self, *, indent: int | None = 2) -> str:
        """Returns the facts as JSON, to be kept beside the model."""
        return json.dumps(self.get_config(), indent=indent)

    @classmethod
    def from_json(cls, text: str) -> TaskSpec:
        """Makes a spec from `to_json`'s result."""
        try:
            config = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"The task is not valid JSON: {error}") from error
        return cls.from_config(config)
