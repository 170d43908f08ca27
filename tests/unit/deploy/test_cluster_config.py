"""What each process is told follows from what the user asked for, and nonsense is refused before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from deploy.cluster_config import ClusterConfig
from deploy.process_config import SHARED, config_type, process_config, worker_threads
from deploy.reconcile import Kind
from deploy.simulated import describe_simulation, with_timing_inlined
from diptych.config import RouterConfig, WorkerConfig
from diptych.engine.sim.timing_spec import TimingFile


def make(**fields: object) -> ClusterConfig:
    return msgspec.convert({"model": "/models/x", **fields}, ClusterConfig)


def test_processes_agree_where_they_must() -> None:
    config = make(name="blue", redis_url="redis://r:1/0", served_model="m", options={"block_size": 32})
    processes = [process_config(config, kind, slot=0) for kind in Kind]
    for name in ("model", "served_model", "cluster", "redis_url", *SHARED):
        assert len({getattr(process, name) for process in processes}) == 1, name
    assert processes[0].block_size == 32
    assert processes[0].cluster == "blue"


def test_each_kind_gets_its_own_configuration() -> None:
    config = make(
        router={"http_port": 1234, "options": {"max_choices": 3}},
        prefill={"options": {"max_batch_tokens": 7}},
        decode={"options": {"kv_cache_bytes": 1 << 20, "transports": ["tcp", "self"]}},
        limits={"drain_timeout_s": 3},
    )
    prefill, decode, router = (process_config(config, kind, slot=0) for kind in Kind)
    assert isinstance(prefill, WorkerConfig)
    assert isinstance(decode, WorkerConfig)
    assert isinstance(router, RouterConfig)
    assert (prefill.role, prefill.max_batch_tokens, prefill.drain_timeout_s) == ("prefill", 7, 3)
    assert (decode.role, decode.kv_cache_bytes, decode.transports) == ("decode", 1 << 20, ("tcp", "self"))
    assert (router.host, router.http_port, router.max_choices) == ("127.0.0.1", 1234, 3)


def test_a_second_router_has_ports_of_its_own() -> None:
    config = make(router={"count": 2, "http_port": 8000, "grpc_port": 0})
    first, second = (process_config(config, Kind.ROUTER, slot) for slot in (0, 1))
    assert isinstance(second, RouterConfig)
    assert (first.http_port, second.http_port) == (8000, 8001)
    assert first.grpc_port == second.grpc_port == 0  # any free one


@pytest.mark.parametrize("kind", Kind)
def test_configurations_survive_the_way_to_their_process(kind: Kind) -> None:
    config = make(decode={"labels": {"zone": "a"}, "resources": {"slot": 1}, "options": {"threads": 2}})
    assert msgspec.json.decode(msgspec.json.encode(config), type=ClusterConfig) == config
    process = process_config(config, kind, slot=0)
    assert msgspec.json.decode(msgspec.json.encode(process), type=config_type(kind)) == process


def test_processors_are_divided_among_the_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _pid: set(range(8)))
    assert worker_threads(make(), Kind.DECODE) == 4
    assert worker_threads(make(prefill={"count": 8}, decode={"count": 8}), Kind.PREFILL) == 1
    assert worker_threads(make(decode={"options": {"threads": 3}}), Kind.DECODE) == 3
    assert worker_threads(make(), Kind.ROUTER) == 1


def test_a_gpu_decides_device_and_dtype_unless_the_user_does() -> None:
    on_gpu = {"num_gpus": 1}
    worker = process_config(make(prefill=on_gpu, decode=on_gpu), Kind.DECODE, slot=0)
    assert isinstance(worker, WorkerConfig)
    assert (worker.device, worker.dtype) == ("cuda", "bfloat16")
    router = process_config(make(prefill=on_gpu, decode=on_gpu, options={"dtype": "float16"}), Kind.ROUTER, slot=0)
    assert router.dtype == "float16"


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"decode": {"count": 0}}, "decode.count is 0"),
    ({"prefill": {"count": -1}}, "prefill.count is -1"),
    ({"decode": {"count": 1_001}}, "decode.count is 1001; .* at most 1000"),
    ({"router": {"count": 1_001}}, "router.count is 1001; .* at most 1000"),
    ({"autoscale": {"prefill": {"max": 100_000}}}, "autoscale.prefill.max is 100000; .* at most 1000"),
    ({"autoscale": {"mode": "on", "decode": {"max": 1_001}}}, "autoscale.decode.max is 1001; .* at most 1000"),
    ({"router": {"count": 0}}, "router.count is 0"),
    ({"router": {"http_port": 70_000}}, "http_port is 70000"),
    ({"options": {"block_size": 0}}, "block_size is 0"),
    ({"options": {"threads": 1}}, "options.threads: here are settings of all"),
    ({"decode": {"options": {"block_size": 8}}}, r"decode.options.block_size: all processes must agree"),
    ({"decode": {"options": {"port": 8}}}, r"decode.options.port: the cluster decides"),
    ({"decode": {"options": {"treads": 8}}}, r"decode.options: .*treads"),
    ({"decode": {"num_gpus": -1}}, "num_gpus is -1"),
    ({"decode": {"resources": {"GPU": 1}}}, "use num_gpus"),
    ({"prefill": {"placement": "anywhere"}}, "anywhere"),
    ({"router": {"options": {"remote_prefill": "perhaps"}}}, "remote_prefill"),
    ({"limits": {"suspect_after_s": 9, "replace_after_s": 8}}, "suspect_after_s"),
    ({"name": "a b"}, "name is 'a b'"),
    ({"router": {"host": "0.0.0.0"}}, "router.host is 0.0.0.0, which other machines can reach"),
    ({"admin": {"host": "10.1.2.3"}}, "admin.host is 10.1.2.3"),
    ({"worker_host": "0.0.0.0"}, "worker_host is 0.0.0.0.*trusted_kv_network"),
    ({"decode": {"options": {"interfaces": "eth0"}}}, "decode.options.interfaces is eth0.*trusted_kv_network"),
]


@pytest.mark.parametrize(("wrong", "message"), WRONG)
def test_nonsense_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**wrong)


def test_whoever_says_so_plainly_may_listen_anywhere() -> None:
    assert make(router={"host": "0.0.0.0"}, allow_insecure_network=True).router.host == "0.0.0.0"


LOCKS = {"tls_cert_file": "/c", "tls_key_file": "/k", "api_keys_file": "/keys"}


def test_doors_with_tls_and_keys_may_be_reached() -> None:
    assert make(router={"host": "0.0.0.0", "options": LOCKS}).router.host == "0.0.0.0"
    files = {"tls_cert_file": "/c", "tls_key_file": "/k"}
    assert make(admin={"host": "10.1.2.3", **files}).admin.host == "10.1.2.3"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tls_cert_file": "/c", "tls_key_file": "/k"}, "router.host is 0.0.0.0.*api_keys_file"),
        ({"api_keys_file": "/keys"}, "router.host is 0.0.0.0.*tls_cert_file"),
        (LOCKS | {"tls_key_file": ""}, "tls_key_file missing"),
        (LOCKS | {"admin_host": "0.0.0.0"}, "admin_host is 0.0.0.0"),  # it has no lock
    ],
)
def test_half_a_lock_is_none(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(router={"host": "0.0.0.0", "options": options})


def test_a_simulated_cluster_is_played_on_processors_alone(tmp_path: Path) -> None:
    given = "measured:" + str(tmp_path / "timing.json")
    timing = "fitted:prefill_c1_ms_per_token=0.5,decode_c0_ms=9.0"
    (tmp_path / "timing.json").write_bytes(msgspec.json.encode(TimingFile(timing=timing)))
    config = make(
        options={"engine": "sim", "sim_cell_bytes": 32},
        prefill={"num_gpus": 0.5, "options": {"sim_timing": "fixed:prefill_ms=9,decode_ms=9", "sim_speedup": 2.0}},
        decode={"options": {"sim_timing": given}},
    )
    sent = with_timing_inlined(config)
    prefill, decode, router = (process_config(sent, kind, slot=0) for kind in Kind)
    assert isinstance(prefill, WorkerConfig)
    assert isinstance(decode, WorkerConfig)
    assert {each.engine for each in (prefill, decode, router)} == {"sim"}
    assert {each.sim_cell_bytes for each in (prefill, decode, router)} == {32}
    assert (prefill.device, prefill.threads, prefill.dtype) == ("cpu", 1, "float32")
    assert decode.sim_timing == timing  # the file may not be there where the worker runs
    said = describe_simulation(sent)
    assert "SIMULATED" in said
    assert f"{timing} and fixed:prefill_ms=9,decode_ms=9, 2 times as fast" in said


def test_a_simulated_cluster_with_no_such_timing_is_refused() -> None:
    config = make(options={"engine": "sim"}, decode={"options": {"sim_timing": "fast"}})
    with pytest.raises(ValueError, match="begins with fixed:"):
        with_timing_inlined(config)
    with pytest.raises(msgspec.ValidationError, match="all processes must agree on it"):
        make(decode={"options": {"engine": "sim"}})
