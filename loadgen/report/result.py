"""What a run leaves behind: its configuration, where and when it ran, its figures, and whether they may be believed."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from pathlib import Path

import msgspec

from loadgen.arrivals import ClosedLoop
from loadgen.client.config import RunConfig, ShardReport
from loadgen.client.plan import Plan, phase_of
from loadgen.client.records import Record
from loadgen.report.measures import summarise
from loadgen.report.summary import Summary
from loadgen.report.window import measured_window, ran_out
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
    remarks: list[str] = []  # what a reader of the figures has to know; nothing that makes them wrong
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
    interrupted = any(shard.interrupted for shard in shards)
    window = measured_window(config, plan, records, interrupted)
    for record in records:
        record.phase = phase_of(record.intended_ms, window)
    summary = summarise(config, records, shards, window, _possible_hit_rate(plan, records))
    reasons = _doubts(config, plan, summary, interrupted)
    return RunResult(
        config=config,
        started_at=started_at,
        machine=where,
        valid=not reasons,
        invalid_because=reasons,
        remarks=_remarks(config, plan, records, summary),
        summary=summary,
    )


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
    elif not summary.window_s:
        reasons.append("what was measured took no time, so there are no rates; make the run longer")
    by_time = isinstance(config.arrivals, ClosedLoop) and config.duration_s is not None  # its plan is never too short
    if summary.sent < len(plan.requests) and not interrupted and not by_time:
        reasons.append(f"{len(plan.requests) - summary.sent} planned requests were never sent")
    return reasons


def _remarks(config: RunConfig, plan: Plan, records: Sequence[Record], summary: Summary) -> list[str]:
    remarks = []
    if ran_out(config, plan, records):
        remarks.append(
            f"the workload ran out: it has {len(plan.requests)} requests, and the figures are of the "
            f"{summary.window_s:g} s that they last, warm-up and tail left out"
        )
    if summary.short_answers and config.exact_length:
        remarks.append(
            f"answers shorter than they had to be, and so misses of goodput: {summary.short_answers}; for a server "
            "that does not know ignore_eos, give --no-ignore-eos"
        )
    if summary.lumps:
        remarks.append(
            f"answers in one piece, which have no time per token, so that their first token's decides: {summary.lumps}"
        )
    if summary.tpot_basis == "events" and summary.succeeded:
        remarks.append("the server does not say how many tokens its answers have: TPOT is a time per event")
    return remarks


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
