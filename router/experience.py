"""What a router learns from its own requests, for placement: how long completions are, how wrong predictions were.

Knows no clock: a request's report has the times.
"""

from __future__ import annotations

from router.placement import Learnt
from router.requests import Report

_WEIGHT = 0.05  # of the latest request: the last forty or so matter
FIRST_TOKENS, FIRST_ERROR = 128.0, 0.1  # until a request has ended
MIN_ERROR, MAX_ERROR = 0.02, 0.5  # nothing is predicted better; and nothing is so bad that a cached prefix is no news


class Experience:
    def __init__(self) -> None:
        self._tokens = FIRST_TOKENS
        self._error = FIRST_ERROR

    @property
    def error(self) -> float:
        """Mean of |predicted - actual| / the greater of the two, of recent times to first token; within its bounds."""
        return min(MAX_ERROR, max(MIN_ERROR, self._error))

    def learnt(self, max_tokens: int) -> Learnt:
        """For a request that asks for so many tokens at most."""
        return Learnt(min(float(max_tokens), self._tokens), self.error)

    def ended(self, report: Report, num_choices: int) -> None:
        """One request has been completed."""
        self._tokens += _WEIGHT * (report.num_tokens / num_choices - self._tokens)
        actual_ms = report.ttft_ms
        if actual_ms is not None and report.expected_ms > 0:
            error = abs(actual_ms - report.expected_ms) / max(actual_ms, report.expected_ms)
            self._error += _WEIGHT * (error - self._error)
