"""Which answers were good enough, and how many a second. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from loadgen.client.config import RunConfig
from loadgen.client.records import Record
from loadgen.report.intervals import block_bootstrap
from loadgen.report.summary import Goodput


@dataclass(frozen=True, slots=True)
class Rate:
    window_s: float

    def __call__(self, count: float) -> float:
        """A second."""
        return count / self.window_s if self.window_s > 0 else 0.0


def goodput_of(config: RunConfig, measured: Sequence[Record], counted: Sequence[Record], rate: Rate) -> Goodput:
    met = np.asarray([meets(each, config) for each in measured], np.float64)
    intervals = block_bootstrap(met, lambda values: np.asarray([values.mean()]))
    return Goodput(
        ttft_limit_ms=config.ttft_limit_ms,
        tpot_limit_ms=config.tpot_limit_ms,
        attainment=float(met.mean()) if len(met) else 0.0,
        attainment_interval=intervals[0] if intervals else None,
        requests_per_s=rate(sum(meets(each, config) for each in counted)),
    )


def meets(record: Record, config: RunConfig) -> bool:
    """Both limits. An answer that had to have a length and is shorter did less than was asked. One that came in one
    piece was whole when its first token came: that time alone decides."""
    if not record.ok or record.ttft_ms is None:
        return False
    if config.exact_length and is_short(record, config):
        return False
    tpot_ms = record.tpot_ms
    return record.ttft_ms <= config.ttft_limit_ms and (tpot_ms is None or tpot_ms <= config.tpot_limit_ms)


def is_short(record: Record, config: RunConfig) -> bool:
    """It has fewer tokens than it might have had, by the server's count: events without one may hold several."""
    return record.tokens_counted and record.output_tokens < config.max_tokens(record.planned_output)
