"""The simulated router believes of a worker what the real one would, from the same reports and bookings."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any
from unittest.mock import patch

import pytest
from sim_cases import BLOCK_SIZE, requests_with_ids, small_config

from diptych.engine.interface import CacheEvent
from diptych.messages import WorkerRecord, WorkerState, WorkerStats
from diptych.telemetry import make_logger
from loadgen.sim.bulk_scheduler import Gauges
from loadgen.sim.cluster import simulate
from loadgen.sim.front import Front
from loadgen.sim.metrics import summarise
from loadgen.sim.worker import SimWorker
from loadgen.sim.workload import OpenLoop
from router.fleet import Compatibility, Fleet
from router.worker_link import WorkerLink

UNLIKE = ("links", "best_link", "transfer_bytes_per_s")  # a simulated worker does not measure its wires: they are given


class Told(WorkerLink):
    """A link that is up, and has what a worker reported."""

    def __init__(self, record: WorkerRecord, stats: WorkerStats) -> None:
        self.record, self.stats, self.connected = record, stats, True


@pytest.mark.parametrize("fleet", ["3", "2P+2D"])
def test_a_view_is_what_the_router_makes_of_the_same_report(fleet: str) -> None:
    config = small_config(fleet)
    real = Fleet("router", Compatibility("model", BLOCK_SIZE), 3.0, make_logger("test", stream=io.StringIO()))
    report, compared = Front.report, list[str]()

    def compare(self: Front, worker: SimWorker, gauges: Gauges, events: Sequence[CacheEvent]) -> None:
        report(self, worker, gauges, events)
        stats = worker.stats()
        if worker.worker_id not in [each.worker_id for each, _ in real.reports()]:
            real.adopt(Told(_record(worker, config.num_blocks), stats))
        real.link(worker.worker_id).stats = stats
        (theirs,) = [view for view in real.views(self.bookings) if view.worker_id == worker.worker_id]
        (ours,) = [view for view in self.views() if view.worker_id == worker.worker_id]
        assert _comparable(ours) == _comparable(theirs)
        compared.append(worker.worker_id)

    requests = requests_with_ids([(30 + 7 * (i % 5), 3 + i % 9) for i in range(60)], spread_ms=400.0)
    with patch.object(Front, "report", compare):
        cluster = simulate(config, OpenLoop(requests))
    assert summarise(cluster).num_failed == 0
    assert len(compared) > 100
    assert len(set(compared)) == len(cluster.workers)
    assert any(view.decode_base_ms or view.decode_ms_per_sequence for view in cluster.front.views())


def _comparable(view: object) -> dict[str, Any]:
    names = [name for name in view.__slots__ if name not in UNLIKE]  # type: ignore[attr-defined]
    return {name: getattr(view, name) for name in names}


def _record(worker: SimWorker, num_blocks: int) -> WorkerRecord:
    return WorkerRecord(
        worker_id=worker.worker_id,
        role=worker.role,
        address="",
        state=WorkerState.READY,
        model="model",
        fingerprint="model",
        block_size=BLOCK_SIZE,
        num_blocks=num_blocks,
        block_bytes=1,
        max_context=1_000,
        started_at=0.0,
    )
