"""How quick a fleet is on average, and what of a worker's own measurement is to be believed. Pure.

A measurement is of the latest few steps, and says as much about the prompts in them as about the worker: a token far
into a prompt costs more than the first. Taken as it is, whoever happened to have measured cheap ones would be given
every prompt of a burst. So a worker's rate is drawn towards the mean of its like (`drawn`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from operator import add

from router.placement.views import coarse
from router.placement.workers import MEASURED, Workers

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
    def mean_of(cls, prefills: Workers, decodes: Workers) -> Rates:
        """Of those that have measured; of prefill workers, if any of them has, for prompts."""
        by_prefill_ms, *of_prefills = _some(prefills)
        by_decode_ms, *of_decodes = _some(decodes)
        base, sequence, transfer = map(add, of_prefills, of_decodes)
        by_prefill, by_decode = mean(by_prefill_ms, 0.0), mean(by_decode_ms, 0.0)
        return cls(
            by_prefill or by_decode or UNMEASURED_PREFILL_MS_PER_TOKEN,
            by_prefill,
            by_decode,
            mean(transfer, 0.0),
            mean([one for one, more in zip(base, sequence, strict=True) if one or more], 0.0, zeros=True),
            mean(sequence, UNMEASURED_DECODE_MS_PER_SEQUENCE),
            len(prefills) > 0,
        )


def drawn(own: float, mean: float, near: float) -> float:
    """A worker's own measurement, drawn towards the mean of its like: only what doubt does not explain sets it apart.

    Args:
        near: 1 - the mean error of recent predictions. Estimates wrong by a share e are off by a factor of 1 / (1 - e):
            so much nearer to the mean, and not beyond it. That is soft thresholding of the logarithm (Donoho and
            Johnstone, "Ideal spatial adaptation by wavelet shrinkage", Biometrika 1994).
    """
    return min(max(mean, own * near), own / near)


def mean(values: Iterable[float], default: float, *, zeros: bool = False) -> float:
    """In steps, as all rates are; 0 is no measurement, unless `zeros`."""
    measured = list(values) if zeros else [value for value in values if value]
    return coarse(sum(measured) / len(measured)) if measured else default


def _some(workers: Workers) -> list[list[float]]:
    """Measurements of at most about `SAMPLE` of them, evenly spread, but of all if none of those measured prompts."""
    measured = workers.numbers[MEASURED]
    if len(workers) > SAMPLE:
        some = measured[:, :: -(-len(workers) // SAMPLE)]
        measured = some if some[0].any() else measured
    rows: list[list[float]] = measured.tolist()
    return rows
