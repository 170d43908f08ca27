"""Progress and summaries as plain lines, the same with and without a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable


class Progress:
    """Prints what happens, with the seconds since the start."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began_s = clock()

    def step(self, subject: str, text: str) -> None:
        self.line(f"[{self._clock() - self._began_s:6.1f} s] {subject:<8} {text}")

    def line(self, text: str = "") -> None:
        print(text, flush=True)

    def error(self, text: str) -> None:
        sys.stdout.flush()
        print(f"diptych: {text}", file=sys.stderr, flush=True)
