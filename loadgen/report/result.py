"""What a run leaves behind: its configuration, where and when it ran, its figures, and whether they may be believed."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from pathlib import Path

import msgspec

from loadgen.arrivals import ClosedLoop
from loadgen.client.config import RunConfig, ShardReport
from loadgen.client.plan import Plan, phase_of, window_ms
from loadgen.client.records import Record
from loadgen.report.measures import summarise
from loadgen.report.summary import Summary
from loadgen.workloads.workload import infinite_cache_hits

SCHEMA = "loadgen.run.v1"
UNKNOWN_IF_SIMULATED = "not known whether a model computed: the server does not list it in /v1/models"
STOPPED = "the run was stopped before its end"  # why a run is invalid


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    system: str
    python: str
    cores: int | None
    load_average: float  # over the minute before


class RunResult(msgspec.Struct, frozen=True, kw_only=True):
    schema: str = SCHEMA
    config: RunConfig
    started_at: str  # UTC, ISO 8601
    machine: Machine
    valid: bool
    invalid_because: list[str]
    summary: Summary
    simulated: bool | None = None  # no model computes, its speed is a timing model's, as the server says; None: unknown

    @property
    def title(self) -> str:
        title = self.config.name or f"{self.config.model}: {self.config.workload}"
        return f"{title} (simulated)" if self.simulated else title


def machine() -> Machine:
    return Machine(
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        cores=os.cpu_count(),
        load_average=round(os.getloadavg()[0], 2),
    )


def make_result(
    config: RunConfig,
    plan: Plan,
    records: Sequence[Record],
    shards: Sequence[ShardReport],
    started_at: str,
    where: Machine,
) -> RunResult:
    """Marks each record's phase, and computes the figures. A run of which nothing is left between warm-up and tail is
    invalid: what was sent is over, and kept.
    """
    horizon_ms = plan.horizon_ms
    if horizon_ms is None:  # a closed loop sends until its last client stops
        horizon_ms = max((each.intended_ms for each in records), default=0.0)
    window = _window_ms(config, horizon_ms)
    for record in records:
        record.phase = phase_of(record.intended_ms, window)
    summary = summarise(config, records, shards, window, _possible_hit_rate(plan, records))
    reasons = _doubts(config, plan, summary, any(shard.interrupted for shard in shards))
    return RunResult(
        config=config,
        started_at=started_at,
        machine=where,
        valid=not reasons,
        invalid_because=reasons,
        summary=summary,
    )


def _window_ms(config: RunConfig, horizon_ms: float) -> tuple[float, float]:
    try:
        return window_ms(config, horizon_ms)
    except ValueError:
        return horizon_ms + 1, horizon_ms + 1  # all of it is warm-up


def _possible_hit_rate(plan: Plan, records: Sequence[Record]) -> float:
    """Over the measured requests, in the order in which all were sent."""
    by_index = {each.index: each.request for each in plan.requests}
    hits = infinite_cache_hits([by_index[each.index] for each in records])
    measured = [(hit, each) for hit, each in zip(hits, records, strict=True) if each.phase == "measured"]
    total = sum(each.planned_input for _, each in measured)
    return sum(hit for hit, _ in measured) / total if total else 0.0


def _doubts(config: RunConfig, plan: Plan, summary: Summary, interrupted: bool) -> list[str]:
    """Why the figures of a run say nothing about the server."""
    reasons, side, limit = [], summary.generator, config.lag_limit_ms
    if interrupted:
        reasons.append(STOPPED)
    if side.lag_p99_ms > limit:
        reasons.append(
            f"the generator fell behind: 1 % of requests were sent more than {side.lag_p99_ms:.1f} ms late, and the "
            f"limit is {limit:g} ms; give it more processes, or lower the rate"
        )
    if side.loop_lag_p99_ms > limit:
        reasons.append(
            f"the generator could not keep up with reading: its event loop was more than {side.loop_lag_p99_ms:.1f} ms "
            f"late 1 % of the time, and the limit is {limit:g} ms; give it more processes"
        )
    if not summary.measured:
        reasons.append("no request was measured; make the run longer, or warm-up and tail shorter")
    if not isinstance(config.arrivals, ClosedLoop) and summary.sent < len(plan.requests) and not interrupted:
        reasons.append(f"{len(plan.requests) - summary.sent} planned requests were never sent")
    return reasons


def read_result(path: Path) -> RunResult:
    """
    Raises:
        ValueError: the file is not a run's result.
        OSError: the file cannot be read.
    """
    try:
        result = msgspec.json.decode(path.read_bytes(), type=RunResult)
    except ValueError as error:
        raise ValueError(f"{path.name} is not a run's result: {error}") from None
    if result.schema != SCHEMA:
        raise ValueError(f"{path.name} has schema {result.schema!r}; this reads {SCHEMA}")
    return result
