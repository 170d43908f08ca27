"""What each process is told follows from what the user asked for, and nonsense is refused before anything starts."""

from __future__ import annotations

import msgspec
import pytest

from deploy.cluster_config import ClusterConfig, config_type
from deploy.reconcile import Kind
from diptych.config import RouterConfig, WorkerConfig


def make(**fields: object) -> ClusterConfig:
    return msgspec.convert({"model": "/models/x", "log_folder": "/logs", **fields}, ClusterConfig)


def test_processes_agree_where_they_must() -> None:
    config = make(block_size=32, cluster="blue", redis_url="redis://r:1/0", served_model="m")
    prefill, decode, router = (config.process(kind) for kind in Kind)
    for name in ("model", "served_model", "cluster", "redis_url", "block_size"):
        assert getattr(prefill, name) == getattr(decode, name) == getattr(router, name)


def test_each_kind_gets_its_own_configuration() -> None:
    config = make(host="0.0.0.0", http_port=1234, kv_cache_bytes=1 << 20)
    worker, router = config.process(Kind.DECODE), config.process(Kind.ROUTER)
    assert isinstance(worker, WorkerConfig)
    assert (worker.role, worker.host, worker.kv_cache_bytes) == ("decode", "127.0.0.1", 1 << 20)
    assert isinstance(router, RouterConfig)
    assert (router.host, router.http_port) == ("0.0.0.0", 1234)


@pytest.mark.parametrize("kind", Kind)
def test_configurations_survive_the_way_to_their_process(kind: Kind) -> None:
    config = make().process(kind)
    assert msgspec.json.decode(msgspec.json.encode(config), type=config_type(kind)) == config


def test_processors_are_divided_among_the_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _pid: set(range(8)))
    assert make(prefill=1, decode=1).worker_threads() == 4
    assert make(prefill=8, decode=8).worker_threads() == 1
    assert make(threads=3).worker_threads() == 3


@pytest.mark.parametrize(
    "wrong",
    [{"decode": 0}, {"prefill": -1}, {"http_port": 70_000}, {"block_size": 0}, {"remote_prefill": "perhaps"}],
)
def test_nonsense_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        make(**wrong)
