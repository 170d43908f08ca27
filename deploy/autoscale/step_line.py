"""How a decode step grows with its batch: base + batch x slope, from what a pool's workers report. Knows no clock.

What was seen of a size of batch is kept until that size is seen again: in quiet hours nothing says how full batches
behave, and the line has to know when they come back. (`router.step_fit` forgets within some twenty reports, because a
router asks what one worker does now.) Sizes are kept in powers of the square root of two, each with a moving average.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log2

KEPT = 0.8  # of an average with each later report
PRIOR_BASE = 0.5  # of a step that is taken not to depend on the batch, until batches of two sizes were seen
SPREAD = 1.5  # the largest batch over the smallest one, from which on a line through them says something


@dataclass(slots=True)
class _Seen:
    batch: float
    ms: float


class StepLine:
    """Attributes: largest: batch that was seen."""

    def __init__(self) -> None:
        self.largest = 0.0
        self._seen: dict[int, _Seen] = {}
        self._latest_ms: dict[str, float] = {}

    @property
    def is_measured(self) -> bool:
        return self._line() is not None

    def note(self, worker_id: str, batch: int, step_ms: float) -> None:
        """One report. An idle worker goes on showing its last step: that says nothing new."""
        if batch < 1 or step_ms <= 0 or self._latest_ms.get(worker_id) == step_ms:
            return
        self._latest_ms[worker_id] = step_ms
        self.largest = max(self.largest, float(batch))
        seen = self._seen.setdefault(round(2 * log2(batch)), _Seen(float(batch), step_ms))
        seen.batch = KEPT * seen.batch + (1 - KEPT) * batch
        seen.ms = KEPT * seen.ms + (1 - KEPT) * step_ms

    def keep(self, worker_ids: set[str]) -> None:
        """The others are gone."""
        self._latest_ms = {id: ms for id, ms in self._latest_ms.items() if id in worker_ids}

    def through(self, batch: float, step_ms: float) -> tuple[float, float]:
        """(base, slope) in ms: the line's shape, at the height of what is measured now; zeros if nothing was."""
        if step_ms <= 0 or batch <= 0:
            return self._line() or (0.0, 0.0)
        base, slope = self._line() or (PRIOR_BASE, (1 - PRIOR_BASE) / batch)
        height = step_ms / (base + slope * batch)
        return base * height, slope * height

    def _line(self) -> tuple[float, float] | None:
        """Least squares, every size counting once; neither part is negative."""
        sizes = list(self._seen.values())
        batches, steps = [each.batch for each in sizes], [each.ms for each in sizes]
        if not sizes or max(batches) < SPREAD * min(batches):
            return None
        mean, mean_ms = sum(batches) / len(sizes), sum(steps) / len(sizes)
        variance = sum((batch - mean) ** 2 for batch in batches)
        product = sum((batch - mean) * (ms - mean_ms) for batch, ms in zip(batches, steps, strict=True))
        slope = min(max(product / variance, mean_ms / mean / 64), mean_ms / mean)  # flat lines promise too much
        return mean_ms - slope * mean, slope
