"""A worker says that it is alive while it trains."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Any

from keras_transfer.tuning._oracle import HEARTBEAT, PRUNED


class LostLeaseError(RuntimeError):
    """Another worker runs the trial by now."""


class Heartbeat:
    """Renews a worker's lease on its trial, from a thread of its own, as long as it is entered.

    Args:
        oracle: The client of the chief's oracle.
        tuner_id: The worker.
        trial_id: Its trial.
        seconds: Time between two beats.
    """

    def __init__(self, oracle: Any, tuner_id: str, trial_id: str, seconds: float) -> None:
        self.is_lost = False
        self._oracle = oracle
        self._name = f"{HEARTBEAT}{tuner_id}\n{trial_id}"
        self._seconds = seconds
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ends.set()
        self._thread.join(timeout=self._seconds)

    def still_holds(self) -> bool:
        """Asks whether the trial is still this worker's.

        A worker that was stopped for longer than its lease may come to a report before it comes
        to its next beat.
        """
        if not self.is_lost:
            self.is_lost = self._oracle.get_trial(self._name).status == PRUNED
        return not self.is_lost

    def _beat(self) -> None:
        import grpc  # type: ignore[import-untyped]

        while not self._ends.wait(self._seconds):
            try:
                if not self.still_holds():
                    return
            except grpc.RpcError:  # the chief is gone, and may be back at the next beat
                continue
