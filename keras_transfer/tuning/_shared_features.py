"""One feature cache for all trials of a search, where that is provably the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from keras_transfer import _resolved_plan
from keras_transfer.features import FeatureCache
from keras_transfer.features._decision import StageToRun, decide
from keras_transfer.features._fit_data import training_data, validation_data
from keras_transfer.features._prefix import deepest_point
from keras_transfer.features._sources import Source, as_arrays, split_arrays
from keras_transfer.plan import UnfreezingPlan

DATA = (
    "x",
    "y",
    "sample_weight",
    "validation_data",
    "validation_split",
    "batch_size",
    "shuffle",
    "steps_per_epoch",
    "validation_batch_size",
    "validation_steps",
)


class SharedFeatures:
    """Says which trials may read one cache.

    Args:
        cache: The cache of the search.
    """

    def __init__(self, cache: FeatureCache) -> None:
        self.cache = cache
        # By what the answer depends on; with the data, so that it lives as long as its id.
        self._answers: dict[Any, tuple[bool, Any]] = {}

    def cache_for_trial(
        self, model: Any, plan: UnfreezingPlan, arguments: Mapping[str, Any]
    ) -> FeatureCache | str:
        """Returns the shared cache where a trial may use it, and else "auto".

        `fit` takes a cache as an order: it would trust data that may differ from epoch to epoch,
        and raise where features cannot be kept. "auto" does the right thing there, and says why.

        Args:
            model: The trial's model.
            plan: Its plan.
            arguments: Of `fit`, by name.
        """
        resolved = _resolved_plan.resolve(model, plan)
        points = tuple(deepest_point(model, stage.variables) for stage in resolved.stages)
        data = {name: value for name, value in arguments.items() if name in DATA}
        what = tuple(sorted((name, _identity(value)) for name, value in data.items()))
        key = (points, model.backbone.batch_norm, what)
        if key not in self._answers:
            self._answers[key] = (self._may_share(model, resolved, arguments), data)
        return self.cache if self._answers[key][0] else "auto"

    def _may_share(self, model: Any, resolved: Any, arguments: Mapping[str, Any]) -> bool:
        train, validation = _sources(arguments)
        # Two epochs: one is enough here, since other trials will read the same features.
        stages = [StageToRun(one.stage.name, one.variables, 2) for one in resolved.stages]
        decision = decide(model, stages, train, validation, self.cache, insist=False)
        wanted = [point is not None for point in decision.frozen_to]
        found = [point is not None for point in decision.points]
        is_whole = validation is None or decision.caches_validation
        return any(found) and found == wanted and is_whole


def _identity(value: Any) -> Any:
    """What tells a value of one `fit` from that of another, as hashable data."""
    if isinstance(value, tuple):
        return tuple(map(_identity, value))
    return value if isinstance(value, bool | int | float | str | None) else id(value)


def _sources(arguments: Mapping[str, Any]) -> tuple[Source | str, Source | str | None]:
    x, y = arguments.get("x"), arguments.get("y")
    sample_weight = arguments.get("sample_weight")
    validation = arguments.get("validation_data")
    batch_size = arguments.get("batch_size")
    arrays = as_arrays(x, y, sample_weight)
    split = arguments.get("validation_split")
    if split and validation is None and arrays is not None:
        arrays, validation = split_arrays(arrays, split)
        x, y, sample_weight = (*arrays, None, None)[:3]
    train = training_data(
        x,
        y,
        sample_weight,
        batch_size=batch_size,
        shuffle=arguments.get("shuffle", True),
        steps_per_epoch=arguments.get("steps_per_epoch"),
        insist=False,
    ).source
    found = validation_data(
        validation,
        batch_size=arguments.get("validation_batch_size") or batch_size,
        steps=arguments.get("validation_steps"),
        insist=False,
    )
    return train, None if found is None else found.source
