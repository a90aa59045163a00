"""The weights of a trial's best epoch, without what is as the model was built."""

from __future__ import annotations

import hashlib
import pathlib
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from keras_transfer import _training_state
from keras_transfer._checkpoint_files import CheckpointFiles

FOLDER = "best_weights"
Digests = dict[str, str]


def digests_of(model: Any) -> Digests:
    """Returns a checksum of each variable of a model but its metrics', by name."""
    arrays = _training_state.model_arrays(model)
    return {name: _digest(array) for name, array in arrays.items()}


class SaveBestWeights(keras.callbacks.Callback):
    """Keeps what has changed since the model was built, at each better epoch.

    KerasTuner writes the whole model and its optimizer's state each time, the frozen backbone
    included.

    Args:
        directory: The trial's.
        objective: The `keras_tuner.Objective`.
        built: Checksums of the variables of the model as it was built; `None` to keep all
            variables, where `build_model` returns other weights each time.
    """

    def __init__(self, directory: pathlib.Path, objective: Any, built: Digests | None) -> None:
        super().__init__()
        self.objective = objective
        self.best_value = float("-inf" if objective.direction == "max" else "inf")
        self._files = CheckpointFiles(directory / FOLDER, keep=1)
        self._built = built or {}

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        logs = logs or {}
        if not self.objective.has_value(logs):
            return
        value = self.objective.get_value(logs)
        if self.objective.better_than(value, self.best_value):
            self.best_value = value
            self._save()

    def _save(self) -> None:
        arrays = _training_state.model_arrays(self.model)
        digests = {name: _digest(array) for name, array in arrays.items()}
        changed = {n: a for n, a in arrays.items() if self._built.get(n) != digests[n]}
        left_out = {n: digest for n, digest in digests.items() if n not in changed}
        self._files.write({"changed": changed, "left_out": left_out})

    def get_state(self) -> dict[str, Any]:
        """Returns the best value so far, for `ResumableTraining`."""
        return {"best_value": self.best_value}

    def set_state(self, state: dict[str, Any]) -> None:
        """Puts back what `get_state` returned.

        Args:
            state: What `get_state` returned.
        """
        self.best_value = state["best_value"]


def load_best_weights(directory: pathlib.Path, model: Any) -> None:
    """Gives a newly built model the weights of a trial's best epoch.

    Raises:
        ValueError: If the trial kept none, they are damaged, or what it left out is not as it
            was.
    """
    try:
        newest = CheckpointFiles(directory / FOLDER, keep=1).newest()
    except ValueError as error:
        raise ValueError(
            f"The weights that the trial in {directory} has kept are damaged. Put back a copy, or "
            "train a new model under its plan: hypermodel.plan(trial.hyperparameters)."
        ) from error
    if newest is None:
        raise ValueError(f"The trial in {directory} has kept no weights.")
    state, _ = newest
    arrays = _training_state.model_arrays(model)
    _check_same(state["left_out"], arrays, directory)
    _training_state.set_model_arrays(model, {**arrays, **state["changed"]})


def _check_same(
    left_out: Mapping[str, str], arrays: Mapping[str, np.ndarray], directory: pathlib.Path
) -> None:
    for name, digest in left_out.items():
        if name not in arrays or _digest(arrays[name]) != digest:
            raise ValueError(
                f"`build_model` returns another model than in the search: the variable {name!r}, "
                f"which did not train there and was not kept in {directory}, is not the same. "
                "Load the same pretrained weights."
            )


def _digest(array: np.ndarray) -> str:
    data = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
    shape = f"{array.dtype}{array.shape}".encode()
    return hashlib.blake2b(data, digest_size=16, key=hashlib.sha256(shape).digest()).hexdigest()
