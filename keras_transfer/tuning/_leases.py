"""Who works on what, and since when nothing was heard of them."""

from __future__ import annotations

import time
from collections.abc import Callable


class Leases:
    """Leases of tuners: each is over when its tuner has not been heard of for so long.

    Args:
        seconds: How long a lease lasts.
        clock: Returns the time in seconds.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds = seconds
        self._clock = clock
        self._heard: dict[str, float] = {}
        self._begin = clock()

    def renew(self, tuner_id: str) -> None:
        """Says that a tuner has been heard of."""
        self._heard[tuner_id] = self._clock()

    def is_over(self, tuner_id: str) -> bool:
        """Whether a tuner's lease has run out."""
        return self._clock() - self._heard.get(tuner_id, self._begin) > self.seconds

    def silence(self) -> float:
        """Returns for how many seconds nothing was heard of any tuner."""
        return self._clock() - max(self._heard.values(), default=self._begin)
