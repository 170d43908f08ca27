"""How a decode worker's step time grows with its batch, learnt from what it reports. Knows no clock.

A step takes base + batch x slope: reading the weights costs the same for one sequence as for many, reading their KV
does not. Both come from a least-squares line over the latest reports.
"""

from __future__ import annotations

_DECAY = 0.95  # of a report's weight with each later one: the last twenty or so matter
_MIN_VARIANCE = 1.0  # sequences^2; with batches more alike than that a line through them says nothing
# Of a mean step, the least a sequence adds. A line through noisy reports may come out flat, and a worker whose batch
# seems to cost nothing would be given everything.
_MIN_SLOPE_SHARE = 1 / 64


class StepFit:
    """Attributes: base_ms, ms_per_sequence: of the line; both 0 until something was measured."""

    def __init__(self) -> None:
        self.base_ms = 0.0
        self.ms_per_sequence = 0.0
        self._latest_ms = 0.0
        self._weight = self._n = self._ms = self._nn = self._nms = 0.0  # decayed sums

    def note(self, num_running: int, step_ms: float) -> None:
        """One report. Left out if it brings nothing new: an idle worker goes on showing its last step."""
        if num_running < 1 or step_ms <= 0 or step_ms == self._latest_ms:
            return
        self._latest_ms = step_ms
        self._weight = self._weight * _DECAY + 1
        self._n = self._n * _DECAY + num_running
        self._ms = self._ms * _DECAY + step_ms
        self._nn = self._nn * _DECAY + num_running**2
        self._nms = self._nms * _DECAY + num_running * step_ms
        self._fit()

    def _fit(self) -> None:
        """Without a slope yet, all of a step is taken to be its sequences': that spreads them."""
        n, ms = self._n / self._weight, self._ms / self._weight
        variance = self._nn / self._weight - n * n
        slope = ms / n
        if variance >= _MIN_VARIANCE:
            slope = min(slope, max(_MIN_SLOPE_SHARE * ms, (self._nms / self._weight - n * ms) / variance))
        self.ms_per_sequence = slope
        self.base_ms = ms - slope * n
