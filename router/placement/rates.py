"""How quick a fleet is on average, and what of a worker's own measurement is to be believed. Pure.

A measurement is of the latest few steps, and says as much about the prompts in them as about the worker: a token far
into a prompt costs more than the first. Taken as it is, whoever happened to have measured cheap ones would be given
every prompt of a burst. So a worker's rate is drawn towards the mean of its like (`drawn`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from router.placement.views import WorkerView, coarse

# While nobody has measured anything. A small model on a CPU; wrong elsewhere, and replaced by the first measurement.
UNMEASURED_PREFILL_MS_PER_TOKEN = 3.3
UNMEASURED_DECODE_MS_PER_SEQUENCE = 1.0  # the rest of a step is alike for all, so it decides nothing
SAMPLE = 64  # workers of a role: the mean of so many is known well enough, and a thousand would cost each placement


@dataclass(frozen=True, slots=True)
class Rates:
    """Means over the fleet; what a worker that has measured nothing is taken to do."""

    prefill_ms_per_token: float
    prefill_own_ms_per_token: float  # of prefill workers alone; 0: none has measured
    decode_own_ms_per_token: float  # of prompts, on decode workers alone; 0: none has measured
    transfer_bytes_per_s: float  # 0: nobody has measured
    decode_base_ms: float
    decode_ms_per_sequence: float
    apart: bool  # there is a prefill worker

    @classmethod
    def mean_of(cls, prefills: Sequence[WorkerView], decodes: Sequence[WorkerView]) -> Rates:
        """Of those that have measured; of prefill workers, if any of them has, for prompts."""
        some_prefills, some_decodes = _some(prefills), _some(decodes)
        either = [*some_prefills, *some_decodes]
        by_prefill = mean([w.prefill_ms_per_token for w in some_prefills], 0.0)
        by_decode = mean([w.prefill_ms_per_token for w in some_decodes], 0.0)
        return cls(
            by_prefill or by_decode or UNMEASURED_PREFILL_MS_PER_TOKEN,
            by_prefill,
            by_decode,
            mean([w.transfer_bytes_per_s or w.best_link.bytes_per_s for w in either], 0.0),
            mean([w.decode_base_ms for w in either if w.decode_base_ms or w.decode_ms_per_sequence], 0.0, zeros=True),
            mean([w.decode_ms_per_sequence for w in either], UNMEASURED_DECODE_MS_PER_SEQUENCE),
            bool(prefills),
        )


def drawn(own: float, mean: float, near: float) -> float:
    """A worker's own measurement, drawn towards the mean of its like: only what doubt does not explain sets it apart.

    Args:
        near: 1 - the mean error of recent predictions. Estimates wrong by a share e are off by a factor of 1 / (1 - e):
            so much nearer to the mean, and not beyond it. That is soft thresholding of the logarithm (Donoho and
            Johnstone, "Ideal spatial adaptation by wavelet shrinkage", Biometrika 1994).
    """
    if own * near > mean:
        return own * near
    return own / near if own < mean * near else mean


def mean(values: Iterable[float], default: float, *, zeros: bool = False) -> float:
    """In steps, as all rates are; 0 is no measurement, unless `zeros`."""
    measured = list(values) if zeros else [value for value in values if value]
    return coarse(sum(measured) / len(measured)) if measured else default


def _some(workers: Sequence[WorkerView]) -> Sequence[WorkerView]:
    """At most about `SAMPLE` of them, evenly spread, but all if none of those has measured prompts."""
    if len(workers) <= SAMPLE:
        return workers
    some = workers[:: -(-len(workers) // SAMPLE)]
    return some if any(w.prefill_ms_per_token for w in some) else workers
