"""One feature cache for all trials of a search, where that is provably the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from keras_transfer import _resolved_plan
from keras_transfer.features import FeatureCache
from keras_transfer.features._decision import StageToRun, decide
from keras_transfer.features._fit_data import training_data, validation_data
from keras_transfer.features._sources import Source, as_arrays, split_arrays
from keras_transfer.plan import UnfreezingPlan


def cache_for_trial(
    cache: FeatureCache, model: Any, plan: UnfreezingPlan, arguments: Mapping[str, Any]
) -> FeatureCache | str:
    """Returns the shared cache where a trial may use it, and else "auto".

    `fit` takes a cache as an order: it would trust data that may differ from epoch to epoch, and
    raise where features cannot be kept. "auto" does the right thing there, and says why.

    Args:
        cache: The cache of the search.
        model: The trial's model.
        plan: Its plan.
        arguments: Of `fit`, by name.
    """
    train, validation = _sources(arguments)
    resolved = _resolved_plan.resolve(model, plan)
    # Two epochs: one is enough here, since other trials will read the same features.
    stages = [StageToRun(one.stage.name, one.variables, 2) for one in resolved.stages]
    decision = decide(model, stages, train, validation, cache, insist=False)
    wanted = [point is not None for point in decision.frozen_to]
    found = [point is not None for point in decision.points]
    is_whole = validation is None or decision.caches_validation
    return cache if any(found) and found == wanted and is_whole else "auto"


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
