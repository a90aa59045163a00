"""Goes on with a training that was killed as if it had not been."""

from __future__ import annotations

import os
import pathlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import keras

from keras_transfer import (
    _callback_states,
    _checks,
    _fit_checks,
    _keras_internals,
    _random_state,
    _same_run,
    _training_state,
    _workers,
)
from keras_transfer._checkpoint_files import CheckpointFiles
from keras_transfer.callbacks._copies import copy_without_run


class ResumableTraining(keras.callbacks.Callback):
    """Writes checkpoints while `fit` runs, and goes on from the last when it runs again.

    Put it beside `GradualUnfreezing`, or into a `fit` without a plan. Run the same script
    again after a crash: the run ends with the weights, optimizer state and history of one
    that was never killed, bit for bit where operations are deterministic
    (`tf.config.experimental.enable_op_determinism()`).

    A checkpoint is written where an epoch begins; a run that is killed within an epoch
    repeats it. In `TransferModel.fit` on arrays, or where every stage reads cached features,
    the order of examples is the package's own, and with `save_freq=n` the run goes on at the
    very step. A run that had ended returns at once, unless `fit` is given more `epochs`: then
    it goes on as a second `fit` would.

    Kept are weights, statistics and seed generators, the optimizer with each group's steps,
    averages and loss scale, the stage with its best value and best weights, the history, the
    random state of Python, NumPy, `keras.random` and TensorFlow's global generator (not of
    `tf.random.normal` and its like, which TensorFlow shows to nobody), and the state of
    Keras's own callbacks (`EarlyStopping`, `ReduceLROnPlateau`, `ModelCheckpoint`,
    `CSVLogger`, `TensorBoard`, ...), also on a stock model. A callback of yours is asked for
    `get_state()` and given it in `set_state(state)` (plain data and arrays); one that has
    neither is named once.

    The order of the data within an epoch has to be had again. It is for arrays after
    `keras.utils.set_random_seed`, for data sets that are not shuffled, and in
    `TransferModel.fit` for those whose `shuffle` has a seed. Where it cannot be (no seed, a
    generator, random operations in the pipeline, `repeat` after `shuffle`, a `PyDataset` with
    an `on_epoch_end` of its own, validation data that is shuffled), a line says so when
    training begins; a stock `fit` does not show its data to callbacks, and a line says that.

    On several workers the chief alone writes, and all read: `directory` must be one that all
    of them share.

    Files are checked when read back. One that is damaged is renamed to `*.damaged`, and
    training goes on from the one before.

    Args:
        directory: Where this run keeps its checkpoints; one directory for each run. Delete
            it to train anew.
        save_freq: `"epoch"`, or a number of steps (batches) after which a checkpoint is
            written as well.
        keep: How many checkpoints are kept, at least 1.
        verbose: 0 is silent, 1 prints a line where training goes on, and what cannot be
            exact.

    Raises:
        ValueError: When `fit` begins: if the checkpoint is of another plan, model, optimizer
            or data, if none is whole, or if `save_freq` is a number and the order of the
            data is not the package's own.

    Example:

    >>> import keras, numpy as np, tempfile
    >>> import keras_transfer as ktf
    >>> directory = tempfile.mkdtemp()
    >>> def run():
    ...     keras.utils.set_random_seed(0)
    ...     keras.utils.clear_session()
    ...     model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1, name="head")])
    ...     model.compile("adam", "mse")
    ...     return model.fit(np.ones((8, 4)), np.ones((8, 1)), epochs=2, verbose=0,
    ...                      callbacks=[ktf.callbacks.ResumableTraining(directory, verbose=0)])
    >>> run().history == run().history  # the second finds that the first has ended
    True
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        save_freq: str | int = "epoch",
        keep: int = 2,
        verbose: int = 1,
    ) -> None:
        super().__init__()
        if not isinstance(directory, str | os.PathLike) or not str(directory):
            raise TypeError(f"`directory` must be a path. Received: directory={directory!r}")
        self.directory = pathlib.Path(directory)
        if save_freq != "epoch":
            if isinstance(save_freq, str):
                raise ValueError(
                    "`save_freq` must be 'epoch' or a number of steps. Received: "
                    f"save_freq={save_freq!r}"
                )
            save_freq = _checks.integer(save_freq, "save_freq", minimum=1)
        self.save_freq = save_freq
        self.keep = _checks.integer(keep, "keep", minimum=1)
        self.verbose = verbose
        self._files = CheckpointFiles(self.directory, self.keep)
        self._reset()

    def _reset(self) -> None:
        self._list: keras.callbacks.CallbackList | None = None
        # What `TransferModel.fit` adds: facts of its data, and its own state.
        self._data_facts: dict[str, Any] | None = None
        self._state_of_fit: Callable[[], dict[str, Any]] = dict
        self._note = ""
        self._found: dict[str, Any] | None = None
        self._waits = False
        self._facts: dict[str, Any] = {}
        self._next_epoch = 0

    def __deepcopy__(self, memo: dict[int, Any]) -> ResumableTraining:
        return copy_without_run(self, memo)

    # --- What `TransferModel.fit` asks and tells ----------------------------------------

    def told_by_fit(
        self, facts: Mapping[str, Any], state: Callable[[], dict[str, Any]], note: str
    ) -> None:
        """Says what the data is, before training begins.

        Args:
            facts: What the data is like; compared with the checkpoint's.
            state: Returns what `fit` keeps of its own; asked at each checkpoint.
            note: Why the order of the data cannot be had again; empty if it can.
        """
        self._data_facts = dict(facts)
        self._state_of_fit = state
        self._note = note

    def place(self) -> tuple[int, int] | None:
        """Returns epoch and step at which training goes on; `None` for a new run."""
        if self._found is None:
            return None
        return int(self._found["epoch"]), int(self._found["step"])

    def saved_state_of_fit(self) -> dict[str, Any]:
        """Returns what `fit` kept of its own when the checkpoint was written."""
        assert self._found is not None
        state: dict[str, Any] = self._found["fit"]
        return state

    def restore(self, *, within_epoch: bool = False) -> None:
        """Puts everything back that the checkpoint holds, if there is one to go on from.

        Args:
            within_epoch: Whether metrics are put back as well, which an epoch's beginning
                would clear.
        """
        if self._found is None:
            return
        self._waits = False
        state = self._found
        _callback_states.set_states(self._beside(), state["callbacks"])
        _training_state.set_optimizer_arrays(self.model, state["optimizer"])
        _training_state.set_model_arrays(self.model, state["model"])
        if within_epoch:
            _training_state.set_metric_arrays(self.model, state["metrics"])
        _random_state.set_state(state["random"])
        self.model.make_train_function(force=True)

    def save(self, epoch: int, step: int, *, has_ended: bool = False) -> None:
        """Writes a checkpoint.

        Args:
            epoch: The epoch in progress, or the next one.
            step: Steps of it that are done.
            has_ended: Whether nothing is left to do.
        """
        # All workers ask: metrics are summed over them.
        checkpoint = {
            "facts": self._facts,
            "epoch": epoch,
            "step": step,
            "has_ended": has_ended,
            "epochs": self.params.get("epochs"),
            "callbacks": _callback_states.get_states(self._beside()),
            "optimizer": _training_state.optimizer_arrays(self.model),
            "model": _training_state.model_arrays(self.model),
            "metrics": _training_state.metric_arrays(self.model) if step else {},
            "random": _random_state.get_state(),
            "fit": self._state_of_fit(),
        }
        if _workers.is_chief(self.model.distribute_strategy):
            self._files.write(checkpoint)

    # --- The hooks of `fit` -----------------------------------------------------------

    def set_params(self, params: Any) -> None:
        super().set_params(params)
        self._reset()
        self._join(_keras_internals.callback_list_around(self))

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        if self._list is None:  # a ready-made `CallbackList` without parameters
            self._join(_keras_internals.callback_list_around(self))
        if not self.model.built:
            raise ValueError(
                f"{self.model.name!r} is not built, so it has no state to keep yet. Give it an "
                "input shape, or call it once on a batch, before `fit`."
            )
        if self._data_facts is None and self.save_freq != "epoch":
            raise ValueError(
                "On a stock model training can go on where an epoch begins only: `fit` gives the "
                f"order of its examples. Received: save_freq={self.save_freq}. Use "
                "save_freq='epoch', or a `TransferModel`."
            )
        carrier = _fit_checks.plan_carrier(self._beside())
        steps = self.params.get("steps")
        self._facts = _same_run.facts_of(self.model, carrier, steps)
        self._facts["data"].update(self._data_facts or {})
        newest = self._newest()
        self._say_what_is_not_exact()
        if newest is None:
            return
        self._found, path = newest
        self._compare(path)
        self._waits = True
        _callback_states.prepare_csv_loggers(self._beside(), self._found["callbacks"])
        epoch, step = self._found["epoch"], self._found["step"]
        epochs = self.params.get("epochs") or 0
        if self._found["has_ended"] and self._found["epochs"] == epoch < epochs:
            self._found["has_ended"] = False  # it had come to its end, which is now further on
        if self._found["has_ended"]:
            self._print(
                f"This run has ended: {path} holds its end, which is put back. Delete "
                f"{self.directory} to train anew."
            )
            epoch = self._found["epoch"] = max(epoch, epochs)
        else:
            within = f", step {step + 1}" if step else ""
            self._print(f"Training goes on in epoch {epoch + 1}{within}, from {path}.")
        self._next_epoch = epoch
        _keras_internals.set_initial_epoch(self.model, epoch)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        # First of all callbacks: what they do now, they will do again.
        _keras_internals.set_initial_epoch(self.model, None)
        if self._waits:
            self.restore()
        elif self._found is None or self._found["epoch"] != epoch:
            self._forget_arrays()
            self.save(epoch, 0)
        self._next_epoch = epoch + 1

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        _keras_internals.set_initial_epoch(self.model, None)
        if self._found is not None and self._found["has_ended"]:
            self.restore()
        else:
            self.save(self._next_epoch, 0, has_ended=True)
        self._found = None

    def _forget_arrays(self) -> None:
        """Frees what has been put back, which is as large as the model."""
        for name in ("callbacks", "optimizer", "model", "metrics"):
            if self._found is not None:
                self._found.pop(name, None)

    def _newest(self) -> tuple[dict[str, Any], pathlib.Path] | None:
        """Returns the last whole checkpoint: the chief's, in all workers."""
        strategy = self.model.distribute_strategy
        newest = None
        if _workers.is_chief(strategy):
            self._files.remove_half_written()
            newest = self._files.newest()
        place = (-1, -1) if newest is None else (newest[0]["epoch"], newest[0]["step"])
        # The others look when the chief has put away what is damaged.
        of_chief = tuple(int(_workers.of_chief(strategy, number)) for number in place)
        if not _workers.is_chief(strategy) and of_chief != (-1, -1):
            newest = self._files.newest()
            place = (-1, -1) if newest is None else (newest[0]["epoch"], newest[0]["step"])
        if _workers.any_of(strategy, place != of_chief):
            raise ValueError(
                f"The chief goes on from epoch {of_chief[0] + 1}, and a worker does not find that "
                f"checkpoint. `directory` must be one that all workers share. Received: "
                f"directory={str(self.directory)!r}"
            )
        return newest

    # --- Beside other callbacks ---------------------------------------------------------

    def _join(self, callbacks: keras.callbacks.CallbackList | None) -> None:
        """Becomes the first of the callbacks, so that they find things as they left them."""
        if callbacks is None:
            return
        self._list = callbacks
        # A new list: the old one is being walked through.
        callbacks.callbacks = [self, *(c for c in callbacks.callbacks if c is not self)]

    def _beside(self) -> list[keras.callbacks.Callback]:
        callbacks = [] if self._list is None else self._list.callbacks
        for callback in callbacks:
            if callback is not self and isinstance(
                callback, ResumableTraining | keras.callbacks.BackupAndRestore
            ):
                raise ValueError(
                    f"`fit` was given `ResumableTraining` and `{type(callback).__name__}`, and "
                    "each would put back what it kept. Pass one of them."
                )
        return [c for c in callbacks if c is not self]

    def _compare(self, path: pathlib.Path) -> None:
        assert self._found is not None
        found = _same_run.differences(self._found["facts"], self._facts)
        if found:
            more = f"; and {len(found) - 5} more" if len(found) > 5 else ""
            raise ValueError(
                f"{path} belongs to another run: {'; '.join(found[:5])}{more}. Give this run a "
                "directory of its own, or delete that one to train anew."
            )

    def _say_what_is_not_exact(self) -> None:
        unknown = _callback_states.names_without_state(self._beside())
        if unknown:
            warnings.warn(
                f"The state of {', '.join(unknown)} is not kept: give the callback `get_state()` "
                "and `set_state(state)`, if it has any.",
                stacklevel=2,
            )
        if self._data_facts is None:
            self._print(
                "A stock `fit` does not show its data to callbacks. A resumed run is the same for "
                "arrays after `keras.utils.set_random_seed`, and for data that comes in the same "
                "order in every epoch, both without `steps_per_epoch`."
            )
        elif self._note:
            self._print(f"A resumed run will see its data in another order: {self._note}.")

    def _print(self, line: str) -> None:
        if self.verbose:
            print(line)
