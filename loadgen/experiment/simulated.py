"""Measures cells in virtual time: the same plan through a simulated cluster, reported with the same figures.

What the simulator leaves out (failures, the time of router and Python) is missing too; the generator is never late.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import numpy as np

from diptych.config import RouterConfig
from diptych.engine.limits import Limits
from diptych.engine.sim.fits import deployment
from diptych.engine.sim.timing import FittedTiming
from diptych.messages import Role
from loadgen.arrivals import ClosedLoop
from loadgen.client.config import RunConfig, ShardReport
from loadgen.client.plan import Plan, make_plan
from loadgen.client.records import Cost, Record, write_records
from loadgen.experiment.shape import Shape
from loadgen.experiment.spec import SpecError
from loadgen.experiment.tables import SimSpec
from loadgen.experiment.use import RoleUse, Use
from loadgen.report.measures import distribution
from loadgen.report.result import RunResult, machine, make_result
from loadgen.sim.cluster import Cluster, simulate
from loadgen.sim.config import DEFAULT_WIRE_BYTES_PER_S, Fleet, SimConfig
from loadgen.sim.event_loop import NS_PER_MS
from loadgen.sim.policies import routed
from loadgen.sim.requests import Record as Simulated
from loadgen.sim.requests import SimRequest, from_trace
from router.admission.ask import AdmissionLimits

MAX_CONTEXT = 1 << 20  # tokens
MAX_GAPS = 2_000_000  # of which percentiles are taken


class Simulation:
    """The backend "sim"."""

    def __init__(self, spec: SimSpec) -> None:
        """
        Raises:
            SpecError: no table has the model, or a fit's field is missing or unknown.
        """
        try:
            found = deployment(spec.model, spec.gpu, spec.tensor_parallel)
            self._timing = FittedTiming(**spec.fitted) if spec.fitted else found.timing
        except (ValueError, KeyError, TypeError) as error:
            raise SpecError(f"sim: {error}") from None
        self._spec = spec
        self._token_bytes = spec.kv_bytes_per_token or found.kv_bytes_per_token
        self._kv_tokens = spec.kv_cache_bytes // self._token_bytes if spec.kv_cache_bytes else found.kv_tokens

    @property
    def cluster(self) -> str:
        return ""

    async def shape(self, shape: Shape) -> tuple[str, str]:
        return "http://simulated", "simulated"

    async def settle(self, config: RunConfig) -> None:
        """A simulated worker is never cold."""

    async def measure(self, config: RunConfig, shape: Shape, records_path: Path) -> tuple[RunResult, Use | None]:
        plan = await asyncio.to_thread(make_plan, config)
        where, started_at = machine(), datetime.now(UTC).isoformat(timespec="seconds")
        workload = _Planned(plan, config)
        cluster = await asyncio.to_thread(simulate, self._config(shape, config.seed), workload)
        records = sorted((_record(each, plan) for each in cluster.records), key=lambda each: each.intended_ms)
        shard = ShardReport(cpu_share=0.0, loop_lag_ms=[], connections=0)
        result = make_result(config, plan, records, [shard], started_at, where)
        result = msgspec.structs.replace(result, simulated=True)
        write_records(records_path, records)
        return _with_gaps(result, cluster), _use(cluster)

    async def close(self) -> None:
        pass

    def _config(self, shape: Shape, seed: int) -> SimConfig:
        spec = self._spec
        return SimConfig(
            Fleet(shape.prefill, shape.decode),
            self._timing,
            routed(shape.policy, seed, shape.remote_prefill),
            Limits(shape.max_batch_tokens, spec.max_running, spec.block_size, MAX_CONTEXT),
            self._kv_tokens // spec.block_size,
            self._token_bytes * spec.block_size,
            wire_bytes_per_s=spec.wire_bytes_per_s or DEFAULT_WIRE_BYTES_PER_S,
            hop_ms=spec.hop_ms,
            admission=AdmissionLimits.of(RouterConfig(model="", remote_prefill=shape.router_remote_prefill)),
        )


class _Planned:
    """The generator's plan as the simulator's workload: open at its times, or closed until it ends."""

    def __init__(self, plan: Plan, config: RunConfig) -> None:
        self._plan = plan
        self._clients = config.arrivals.concurrency if isinstance(config.arrivals, ClosedLoop) else 0
        self._end_ns = None if config.duration_s is None else round(config.duration_s * 1e3 * NS_PER_MS)
        self._next = 0

    def planned(self) -> Iterator[SimRequest]:
        for _ in range(self._clients or len(self._plan.requests)):
            if (request := self._take(0)) is not None:
                yield request

    def after_end(self, now_ns: int) -> SimRequest | None:
        over = self._end_ns is not None and now_ns >= self._end_ns
        return None if over or not self._clients else self._take(now_ns)

    def _take(self, now_ns: int) -> SimRequest | None:
        if self._next >= len(self._plan.requests):
            return None
        planned = self._plan.requests[self._next]
        self._next += 1
        at_ns = now_ns if self._clients else round(planned.due_ms * NS_PER_MS)
        return from_trace(planned.index, planned.request, at_ns)


def _record(simulated: Simulated, plan: Plan) -> Record:
    """Tokens are spread evenly between the first and the last: what happened between them is in the gaps."""
    request, planned = simulated.request, plan.requests[simulated.request.number]
    record = Record(
        index=planned.index,
        label=planned.label,
        intended_ms=request.arrival_ns / NS_PER_MS,
        planned_input=request.input_length,
        planned_output=request.output_length,
        status=200 if simulated.finished else 503,
    )
    if not simulated.finished:
        record.failure = "http_503"
        return record
    record.ttft_ms, record.e2e_ms = simulated.ttft_ms, simulated.e2e_ms
    record.output_tokens = request.output_length
    record.itl_ms = [simulated.tpot_ms] * (request.output_length - 1)
    record.event_tokens = [1] * request.output_length
    record.prompt_tokens = request.input_length
    record.cached_tokens, record.predicted_cached_tokens = simulated.cached, simulated.predicted_cached
    exposed_ms = simulated.transfer_ns / NS_PER_MS
    record.cost = Cost(
        prefill_worker=f"prefill-{simulated.prefill_worker}" if simulated.prefill_worker >= 0 else "",
        decode_worker=f"decode-{simulated.decode_worker}",
        computed_tokens=request.input_length - simulated.cached,
        prefill_ms=simulated.ttft_ms,  # with its queue: the simulator does not tell them apart
        exposed_ms=exposed_ms,
        transfer_ms=exposed_ms,
    )
    return record


def _with_gaps(result: RunResult, cluster: Cluster) -> RunResult:
    """The gaps between tokens as they were, of all requests."""
    values, counts = cluster.gaps.sorted_ms()
    scale = max(1, -(-int(counts.sum()) // MAX_GAPS))
    found = distribution(np.repeat(values, np.maximum(1, counts // scale)), resample=False)
    if found is None:
        return result
    latencies = {**result.summary.latencies, "itl": found}
    summary = msgspec.structs.replace(result.summary, latencies=latencies)
    return msgspec.structs.replace(result, summary=summary)


def _use(cluster: Cluster) -> Use:
    """Busy time over the whole run: one sample."""
    total_ns = max((each.last_token_ns for each in cluster.records), default=1)

    def role(kind: Role) -> RoleUse | None:
        busy = [each.busy_ns / max(1, total_ns) for each in cluster.workers if each.role is kind]
        return RoleUse(busy=[sum(busy) / len(busy)], kv_used=[], waiting=[]) if busy else None

    decode = role(Role.DECODE)
    assert decode is not None  # a fleet has one
    return Use(at_s=[0.0], prefill=role(Role.PREFILL), decode=decode)
