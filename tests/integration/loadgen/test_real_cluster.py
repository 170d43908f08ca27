"""The generator against a real cluster of our own, as it would run against any other server: over HTTP only."""

from __future__ import annotations

from pathlib import Path

from process_cluster import ProcessCluster
from tiny_model import make_tiny_model

from loadgen.arrivals import OpenLoop, parse_rate
from loadgen.client.config import RunConfig
from loadgen.client.records import read_records
from loadgen.client.run import run_once


async def generated_tokens(cluster: ProcessCluster) -> float:
    """By the cluster's own count, when it is at rest. A canary's are among them."""
    metrics = await cluster.settled_metrics()
    workers = [worker.record.worker_id for worker in cluster.workers]
    return sum(metrics.value("diptych_worker_generated_tokens_total", worker=worker_id) for worker_id in workers)


async def test_sessions_on_a_real_cluster(tmp_path: Path, valkey_url: str) -> None:
    """Every answer is whole and as long as asked; the server's count of prompt tokens is the plan's; later turns hit
    the prefix cache; and the cluster's own counters agree with what the client saw."""
    model, logs, path = make_tiny_model(tmp_path / "tiny"), tmp_path / "logs", tmp_path / "records.jsonl"
    logs.mkdir()
    async with ProcessCluster(model, valkey_url, logs) as cluster:
        before = await generated_tokens(cluster)
        config = RunConfig(
            base_url=cluster.base_url,
            model="tiny",
            workload="sessions:system=64,turns=4,user=20..40,output=4..12,active=2",
            arrivals=OpenLoop(parse_rate("15", None)),
            num_requests=40,
            vocabulary_size=250,
            extra_body={"return_report": True},
            continuous_usage=True,
            lag_limit_ms=60_000,
        )
        result = await run_once(config, records_path=path)
        after = await generated_tokens(cluster)
        records = read_records(path)

    assert not result.summary.failures
    assert result.summary.measured == 40
    for record in records:
        assert record.output_tokens == record.planned_output == sum(record.event_tokens)
        assert record.prompt_tokens == record.planned_input
        assert record.predicted_cached_tokens is not None
    cache = result.summary.cache
    assert cache.hit_rate is not None
    assert cache.predicted_hit_rate is not None
    assert 0 < cache.hit_rate <= cache.possible_hit_rate + 1e-9
    assert after - before >= sum(record.output_tokens for record in records)
