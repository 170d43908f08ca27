"""Says how far a worker has come with loading its model: a line in its log now and then, nothing for a small model."""

from __future__ import annotations

import time
from collections.abc import Callable

from diptych.telemetry import Logger

SAY_EVERY_S = 2.0


class LoadProgress:
    """Called with a stage and the fraction of it that is done, 0 to 1, from the thread that loads."""

    def __init__(self, log: Logger, clock: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._clock = clock
        self._next_at = clock() + SAY_EVERY_S

    def __call__(self, stage: str, fraction: float) -> None:
        if (now := self._clock()) >= self._next_at:
            self._next_at = now + SAY_EVERY_S
            self._log.info("loading", stage=stage, percent=int(100 * fraction))
