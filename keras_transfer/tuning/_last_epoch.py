"""What a trial ended with, for the trial that goes on from there (Hyperband's next round)."""

from __future__ import annotations

import pathlib
from typing import Any

from keras_transfer import _training_state
from keras_transfer._checkpoint_files import CheckpointFiles

FOLDER = "last_epoch"


def keep_last_epoch(directory: pathlib.Path, model: Any) -> None:
    """Keeps weights, statistics and the optimizer's state of a trial that has ended."""
    CheckpointFiles(directory / FOLDER, keep=1).write(
        {
            "model": _training_state.model_arrays(model),
            "optimizer": _training_state.optimizer_arrays(model),
        }
    )


def go_on_from(directory: pathlib.Path, model: Any) -> None:
    """Gives a newly built model what another trial ended with.

    KerasTuner has loaded the weights of that trial's best epoch, which go with neither the
    number of its last epoch nor the optimizer's state.

    Raises:
        ValueError: If the trial left nothing behind, or another model did.
    """
    newest = CheckpointFiles(directory / FOLDER, keep=1).newest()
    if newest is None:
        raise ValueError(
            f"This trial is to go on from one that left nothing in {directory / FOLDER}. Start "
            "the search anew: overwrite=True."
        )
    state, _ = newest
    _training_state.set_model_arrays(model, state["model"])
    _training_state.set_optimizer_arrays(model, state["optimizer"])
