"""What is learnt of how the queue drains. Knows no clock: times are handed in.

Streams  how long a place in decode's batch is taken
Drain    how wrong it is to predict by that and by the prefill rates: blocks, other routers, rates that are off
"""

from __future__ import annotations

_WEIGHT = 0.05  # of the latest: the last twenty or so matter, as in `router.experience`
PRIOR = 4.0  # requests, for which the rates, or what was learnt of an earlier queue, are believed
MIN_FACTOR, MAX_FACTOR = 0.05, 1_000.0


class Drain:
    """From what was let through while others waited: time that passed against time that was predicted."""

    def __init__(self) -> None:
        self._passed_ms = self._predicted_ms = 0.0  # sums over recent requests
        self._num = 0.0  # of them; older ones count less
        self._since_ms: float | None = None  # the last one went, or the queue began

    def began(self, work_ms: float, now_ms: float) -> None:
        """Somebody waits where nobody did; `work_ms` is what the queue is predicted to need for that one."""
        self._since_ms = now_ms
        if not self._num:
            self._num, self._passed_ms, self._predicted_ms = PRIOR, PRIOR * work_ms, PRIOR * work_ms
        elif self._num > PRIOR:
            self._decay(PRIOR / self._num)

    def went(self, work_ms: float, now_ms: float) -> None:
        """One that waited was let through."""
        if self._since_ms is None:
            return
        self._decay(1 - _WEIGHT)
        self._num += 1
        self._passed_ms += now_ms - self._since_ms
        self._predicted_ms += work_ms
        self._since_ms = now_ms

    def ended(self) -> None:
        """Nobody waits."""
        self._since_ms = None

    def factor(self, now_ms: float) -> float:
        """Real by predicted time. A queue that stands still is slower with every moment."""
        if not self._predicted_ms:
            return 1.0
        stalled_ms = 0.0 if self._since_ms is None else now_ms - self._since_ms
        mean_ms = self._predicted_ms / self._num
        if_one_went = (self._passed_ms + stalled_ms) / (self._predicted_ms + mean_ms)
        return min(MAX_FACTOR, max(MIN_FACTOR, self._passed_ms / self._predicted_ms, if_one_went))

    def _decay(self, by: float) -> None:
        self._num *= by
        self._passed_ms *= by
        self._predicted_ms *= by


class Streams:
    """How often a place in decode's batches becomes free: a request ends, however it ends."""

    def __init__(self) -> None:
        self._interval_ms = 0.0  # mean, between two ends while others waited; 0: not seen
        self._since_ms = 0.0  # the last end, or the queue's beginning
        self._num_open = 0
        self._sum_began_ms = 0.0  # first tokens of the open ones

    def began(self, now_ms: float) -> None:
        """A first token is there."""
        self._num_open += 1
        self._sum_began_ms += now_ms

    def ended(self, began_ms: float, now_ms: float, *, others_wait: bool) -> None:
        self._num_open -= 1
        self._sum_began_ms = self._sum_began_ms - began_ms if self._num_open else 0.0
        if others_wait:
            interval_ms = now_ms - self._since_ms
            self._interval_ms += (_WEIGHT if self._interval_ms else 1.0) * (interval_ms - self._interval_ms)
        self._since_ms = now_ms

    def queue_began(self, now_ms: float) -> None:
        self._since_ms = now_ms

    def end_ms(self, now_ms: float) -> float:
        """Between two ends. Before any was seen: as if each stayed as long again as it has stayed by now."""
        if self._interval_ms or not self._num_open:
            return self._interval_ms
        return 2.0 * (now_ms - self._sum_began_ms / self._num_open) / self._num_open
