"""Whether requests should ask a helper that may be gone or slow: one failure keeps them off until it is quick again.

Only the background tries it meanwhile, so no request pays for finding out. Pure: times are arguments.
"""

from __future__ import annotations

QUICK_ANSWERS = 2  # one after the other; one alone may be luck


class Breaker:
    """
    Attributes:
        reason: why it is open, in a word; empty: it is closed.
    """

    def __init__(self, limit_s: float) -> None:
        """
        Args:
            limit_s: an answer that took longer is none for a request.
        """
        self.reason = ""
        self._limit_s = limit_s
        self._quick = 0

    def failed(self, reason: str) -> None:
        self.reason, self._quick = reason, 0

    def answered(self, took_s: float) -> None:
        """To the background. A slow answer does not open it: the next request finds that out itself."""
        self._quick = self._quick + 1 if took_s <= self._limit_s else 0
        if self._quick >= QUICK_ANSWERS:
            self.reason = ""
