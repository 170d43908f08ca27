"""A timing model from what a router's /metrics say of its workers."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from diptych.engine.sim.timing import StepShape
from diptych.engine.sim.timing_spec import parse_timing
from diptych.messages import Role, WorkerRecord, WorkerState, WorkerStats
from loadgen.sim.running import Report, parse_reports, timing, timing_of
from router.worker_metrics import WorkerCollector


def record(worker_id: str, role: Role) -> WorkerRecord:
    return WorkerRecord(
        worker_id=worker_id,
        role=role,
        address="127.0.0.1:1",
        state=WorkerState.READY,
        model="m",
        fingerprint="f",
        block_size=16,
        num_blocks=9,
        block_bytes=1,
        max_context=99,
        started_at=0.0,
    )


WORKERS = [
    (record("prefill-1", Role.PREFILL), WorkerStats(prefill_tokens_per_s=2_000.0)),
    (record("prefill-2", Role.PREFILL), WorkerStats()),  # new
    (record("decode-1", Role.DECODE), WorkerStats(decode_step_ms=10.0, num_running=4)),
    (record("decode-2", Role.DECODE), WorkerStats(decode_step_ms=14.0, num_running=12)),
]


def metrics() -> str:
    registry = CollectorRegistry()
    registry.register(WorkerCollector(lambda: WORKERS))
    return generate_latest(registry).decode()


def test_metrics_become_a_timing_model() -> None:
    model = timing_of(parse_reports(metrics()))
    assert model.prefill_c1_ms_per_token == pytest.approx(0.5)
    assert (model.decode_c0_ms, model.decode_c1_ms_per_row) == pytest.approx((8.0, 0.5))
    assert model.step_ms(StepShape((), 4, 999)) == pytest.approx(10.0)


def test_batches_all_alike_say_nothing_of_a_row() -> None:
    model = timing_of([Report("w", 3, 100.0, 20.0), Report("w", 3, 100.0, 22.0)])
    assert (model.decode_c0_ms, model.decode_c1_ms_per_row) == (21.0, 0.0)


def test_noise_makes_no_negative_times() -> None:
    falling = timing_of([Report("w", 1, 100.0, 20.0), Report("w", 9, 100.0, 12.0)])
    assert falling.decode_c1_ms_per_row == 0.0
    steep = timing_of([Report("w", 8, 100.0, 5.0), Report("w", 9, 100.0, 50.0)])
    assert steep.decode_c0_ms >= 0.0


def test_every_rate_that_was_told_counts_and_repetitions_do_not() -> None:
    """A worker that changes between fast and slow is neither; one at rest repeats its last rate."""
    rates = [500.0, 500.0, 1_000.0, 1_000.0, 1_000.0]
    assert timing_of([Report("w", 1, rate, 20.0) for rate in rates]).prefill_c1_ms_per_token == pytest.approx(1.5)


def test_a_worker_at_rest_still_knows_its_last_step() -> None:
    assert timing_of([Report("w", 0, 100.0, 20.0)]).decode_c0_ms == 20.0


@pytest.mark.parametrize("reports", [[], [Report("w", 1, 0.0, 10.0)], [Report("w", 1, 10.0, 0.0)]])
def test_what_was_not_measured_is_said(reports: list[Report]) -> None:
    with pytest.raises(ValueError, match="send the cluster some requests first"):
        timing_of(reports)


@pytest.fixture
def door() -> Iterator[str]:
    class Metrics(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            assert self.path == "/metrics"
            self.send_response(200)
            self.end_headers()
            self.wfile.write(metrics().encode())

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Metrics) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_the_command_writes_what_engines_and_the_simulator_read(
    door: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "timing.json"
    assert timing(door, out=out, seconds=0.3, interval=0.1) == 0
    assert "a prompt of 256 tokens takes 128 ms" in capsys.readouterr().out
    assert parse_timing(f"measured:{out}") == timing_of(parse_reports(metrics()))
    assert timing(door, out=out, seconds=0.0, worker="decode") == 1
    assert "send the cluster some requests" in capsys.readouterr().err
    assert timing("http://127.0.0.1:1", out=out) == 1
