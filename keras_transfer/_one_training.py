"""Runs the stages of a training as segments of Keras's `fit` that callbacks see as one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras

from keras_transfer.features._order import EpochOrder


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
        self.next_epoch = 0
        self.is_stopped = False

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
        self._order.epoch = epoch
        super().on_epoch_begin(epoch, logs)
        self._check(epoch)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        super().on_epoch_end(epoch, logs)
        self.next_epoch = epoch + 1
        if self.model.stop_training:
            self.is_stopped = True
        elif self.next_epoch < self.params["epochs"]:
            # Ends the segment, which is not what the user's `stop_training` means.
            self.model.stop_training = self._data_of(self.next_epoch) != self._data
