"""What was measured in a block: one run of each arm."""

from __future__ import annotations

import msgspec

from loadgen.report.result import RunResult


class Side(msgspec.Struct, frozen=True, kw_only=True):
    """One run of one arm."""

    measured: int  # requests
    failed: int
    attainment: float
    ttft_mean_ms: float | None
    ttft_p90_ms: float | None
    tpot_mean_ms: float | None
    hit_rate: float | None
    invalid_because: list[str] = []
    simulated: bool | None = None  # no model computed, as the server says; None: not known
    told: int = 0  # requests of which the server said where their prompt was computed
    remote: int = 0  # of those, by a prefill worker


class Block(msgspec.Struct, frozen=True, kw_only=True):
    number: int
    order: str
    first: Side  # of the arm that is asked about, whichever ran first
    second: Side
    attempts: int

    @property
    def sides(self) -> tuple[Side, Side]:
        return self.first, self.second

    @property
    def valid(self) -> bool:
        return not self.doubts

    @property
    def doubts(self) -> list[str]:
        """By the generator's own account, of both runs; each once."""
        return list(dict.fromkeys([*self.first.invalid_because, *self.second.invalid_because]))

    @property
    def difference(self) -> float:
        return self.first.attainment - self.second.attainment


def side_of(result: RunResult) -> Side:
    ttft, tpot = (result.summary.latencies.get(name) for name in ("ttft", "tpot"))
    phases = result.summary.phases
    told = result.summary.succeeded if phases else 0
    return Side(
        measured=result.summary.measured,
        failed=sum(result.summary.failures.values()),
        attainment=result.summary.goodput.attainment,
        ttft_mean_ms=ttft.mean if ttft else None,
        ttft_p90_ms=ttft.p90 if ttft else None,
        tpot_mean_ms=tpot.mean if tpot else None,
        hit_rate=result.summary.cache.hit_rate,
        invalid_because=list(result.invalid_because),
        simulated=result.simulated,
        told=told,
        remote=round(phases.remote_share * told) if phases else 0,
    )
