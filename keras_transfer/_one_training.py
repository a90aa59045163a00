"""Runs the stages of a training as segments of Keras's `fit` that callbacks see as one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import keras

from keras_transfer import _keras_internals, _workers
from keras_transfer.features._order import EpochOrder


@runtime_checkable
class Resuming(Protocol):
    """A callback that keeps checkpoints, as `TransferModel.fit` uses it.

    Attributes:
        save_freq: `"epoch"`, or the number of steps between checkpoints.
    """

    save_freq: str | int

    def told_by_fit(
        self, facts: Mapping[str, Any], state: Callable[[], dict[str, Any]], note: str
    ) -> None:
        """Says what the data is, before training begins."""
        ...

    def place(self) -> tuple[int, int] | None:
        """Returns epoch and steps done where training goes on; `None` for a new run."""
        ...

    def saved_state_of_fit(self) -> dict[str, Any]:
        """Returns what `fit` kept of its own when the checkpoint was written."""
        ...

    def restore(self, *, within_epoch: bool = False) -> None:
        """Puts everything back that the checkpoint holds."""
        ...

    def save(self, epoch: int, step: int) -> None:
        """Writes a checkpoint."""
        ...


class OneTraining(keras.callbacks.CallbackList):
    """Callbacks of a training that Keras's `fit` runs in segments.

    A segment is a span of epochs that read the same data: the inputs, or the features at one
    entry point. Training begins and ends once, whatever the number of segments.

    Args:
        callbacks: The user's callbacks.
        model: The model that trains.
        order: Told which epoch is in progress.
        data_of: Takes an epoch that is about to begin and returns what stands for the data
            it reads; a segment ends where that changes.
        check: Takes an epoch whose beginning all callbacks have seen, and raises if it
            cannot go on.
        resuming: The callback that keeps checkpoints, if there is one.
        **params: What callbacks are told (`epochs`, `steps`, `verbose`).
    """

    def __init__(
        self,
        callbacks: Sequence[keras.callbacks.Callback],
        *,
        model: keras.Model,
        order: EpochOrder,
        data_of: Callable[[int], Any],
        check: Callable[[int], None],
        resuming: Resuming | None = None,
        **params: Any,
    ) -> None:
        super().__init__(
            list(callbacks),
            add_history=True,
            add_progbar=params["verbose"] != 0,
            model=model,
            **params,
        )
        self._order = order
        self._data_of = data_of
        self._check = check
        self._data: Any = None
        self._last_logs: Any = None
        self._resuming = resuming
        self._epoch = 0
        self._steps_before = 0  # of the epoch in progress, in the run that was killed
        self._saved_at = 0  # the last step of it that a checkpoint holds
        self.next_epoch = 0
        self.is_stopped = False
        self.resumed_at: tuple[int, int] | None = None
        self._is_multi_worker = _keras_internals.is_multi_worker(model.distribute_strategy)
        self._stops_at_end = False

    def begin(self) -> None:
        """Begins the training."""
        super().on_train_begin()
        # Keras clears the flag at the start of each segment.
        self.is_stopped = bool(self.model.stop_training)

    def begin_segment(self, epoch: int) -> None:
        """Says that a segment begins at `epoch`."""
        self.next_epoch = epoch
        self._data = self._data_of(epoch)

    def end(self) -> None:
        """Ends the training."""
        super().on_train_end(self._last_logs)

    def on_train_begin(self, logs: Any = None) -> None:
        self.model.stop_training = self.is_stopped

    def on_train_end(self, logs: Any = None) -> None:
        if logs is not None:
            self._last_logs = logs

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._order.epoch = self._epoch = epoch
        self._steps_before = self._saved_at = 0
        super().on_epoch_begin(epoch, logs)
        if self.resumed_at is not None and self.resumed_at[0] == epoch:
            self._steps_before = self._saved_at = self.resumed_at[1]
            if self._steps_before and self._resuming is not None:
                # Callbacks had seen the epoch begin when the checkpoint was written.
                self._resuming.restore(within_epoch=True)
        self._check(epoch)

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        super().on_train_batch_begin(batch + self._steps_before, logs)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        batch += self._steps_before
        super().on_train_batch_end(batch, logs)
        if self._is_multi_worker and self.model.stop_training:
            # The other workers know of it at the epoch's end, where all stop.
            self._stops_at_end, self.model.stop_training = True, False
        if self._resuming is None or self._resuming.save_freq == "epoch":
            return
        if self.model.stop_training:
            return  # Who goes on from a step before will come to the same end.
        done, freq = batch + 1, int(self._resuming.save_freq)
        steps = self.params["steps"]
        # At an epoch's end the next one's beginning is what is kept.
        if done // freq > self._saved_at // freq and (steps is None or done < steps):
            self._resuming.save(self._epoch, done)
            self._saved_at = done

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        super().on_epoch_end(epoch, logs)
        stops = bool(self.model.stop_training or self._stops_at_end)
        self.model.stop_training = _workers.any_of(self.model.distribute_strategy, stops)
        self.next_epoch = epoch + 1
        if self.model.stop_training:
            self.is_stopped = True
        elif self.next_epoch < self.params["epochs"]:
            # Ends the segment, which is not what the user's `stop_training` means.
            self.model.stop_training = self._data_of(self.next_epoch) != self._data
