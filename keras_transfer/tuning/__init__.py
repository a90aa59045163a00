"""Fine-tuning under KerasTuner: search space, hypermodel, tuner. Needs the extra `tuner`.

KerasTuner is imported with the first of them that is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from keras_transfer.tuning.pruning import MedianPruning, SuccessiveHalving
from keras_transfer.tuning.search_space import SearchSpace

if TYPE_CHECKING:
    from keras_transfer.tuning._tune import tune
    from keras_transfer.tuning.hypermodel import FineTuningHyperModel
    from keras_transfer.tuning.result import TuningResult
    from keras_transfer.tuning.tuner import Tuner

__all__ = [
    "FineTuningHyperModel",
    "MedianPruning",
    "SearchSpace",
    "SuccessiveHalving",
    "Tuner",
    "TuningResult",
    "tune",
]

_MODULES = {
    "FineTuningHyperModel": "hypermodel",
    "Tuner": "tuner",
    "TuningResult": "result",
    "tune": "_tune",
}


def __getattr__(name: str) -> Any:
    import importlib

    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = importlib.import_module(f"{__name__}.{_MODULES[name]}")
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in ("keras_tuner", "tensorboard"):
            raise
        raise ModuleNotFoundError(
            f"Tuning needs {error.name}, which is not installed. Run "
            "`pip install 'keras_transfer[tuner]'`.",
            name=error.name,
        ) from error
    return getattr(module, name)
