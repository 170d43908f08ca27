"""What is said to a cluster's doors, what a description becomes, and what a running cluster cannot do."""

from __future__ import annotations

import asyncio
import http.server
import json
import os
import ssl
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import msgspec
import psutil
import pytest
from certificates import Authority, Files
from experiments import a_result, experiment

from diptych.trust import pinned, trusting
from loadgen.client.config import RunConfig
from loadgen.experiment import admin, served, system
from loadgen.experiment.admin import AdminDoor, Stats
from loadgen.experiment.configs import run_config
from loadgen.experiment.process import Door, find_door
from loadgen.experiment.served import Served
from loadgen.experiment.system import RunningCluster, Shape, SystemUnavailable, describe
from loadgen.experiment.toml import to_toml
from loadgen.experiment.use import Sampler
from loadgen.report.result import STOPPED, RunResult


class Cluster:
    """An admin door in this process; a scale takes effect at the second look."""

    def __init__(
        self, prefill: int, decode: int, budget: int = 512, host: str = "127.0.0.1", *, tls: bool = False
    ) -> None:
        self.counts = {"prefill": prefill, "decode": decode}
        self.running = dict(self.counts)
        self.scales: list[dict[str, int | str]] = []
        self.keys: set[str] = set()
        self.autoscale: dict[str, object] | None = None
        self.gone = False
        self._budget, self._host, self._tls = budget, host, tls

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if self.gone:
            raise httpx.ConnectError("nobody listens")
        self.keys.add(request.headers["authorization"])
        if request.url.path == "/scale":
            body = json.loads(request.content)
            if body.get("decode") == "auto":
                self.scales.append(body)
                return httpx.Response(202, json={})
            if body["decode"] > 5:
                return httpx.Response(400, json=["bad_request", "decode is 6; it must be 1 to 5", "decode", None])
            self.scales.append(body)
            self.counts |= body
            return httpx.Response(202, json={})
        answer = self._status()
        self.running = dict(self.counts)
        return httpx.Response(200, json=answer)

    def _status(self) -> dict[str, object]:
        stats = {"num_running": 1, "step_budget": self._budget, "blocks_total": 10, "blocks_used": 4, "other": 1}
        workers = [
            {"kind": kind, "state": "running", "record": {"worker_id": f"{kind}-{number}"}, "stats": stats}
            for kind, count in self.running.items()
            for number in range(count)
        ]
        router = {"kind": "router", "record": {"http_address": f"{self._host}:81", "tls": self._tls}, "stats": None}
        return {
            "name": "blue",
            "model": "m",
            "wanted": self.counts | {"router": 1},
            "processes": [*workers, router],
            "complete": self.running == self.counts,
            "placeable": self.running,
            "autoscale": self.autoscale,
        }


def running(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> RunningCluster:
    def door(url: str, key: str, trust: object) -> AdminDoor:
        return AdminDoor(url, key, httpx.MockTransport(cluster))

    monkeypatch.setattr(system, "AdminDoor", door)
    monkeypatch.setattr(admin, "POLL_S", 0.0)
    return RunningCluster("http://10.0.0.9:70", "secret")


async def test_a_running_cluster_is_scaled_until_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(1, 1)
    made = running(cluster, monkeypatch)
    assert await made.shape(Shape(prefill=1, decode=1)) == "http://127.0.0.1:81"
    assert cluster.scales == []
    await made.shape(Shape(prefill=0, decode=2, remote_prefill="never"))
    assert cluster.scales == [{"prefill": 0, "decode": 2}]
    assert cluster.running == {"prefill": 0, "decode": 2}
    assert cluster.keys == {"Bearer secret"}
    await made.close()


async def test_a_cluster_is_given_back_as_it_was_found(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(1, 3)
    made = running(cluster, monkeypatch)
    await made.shape(Shape(prefill=2, decode=1))
    await made.shape(Shape(prefill=1, decode=2))
    await made.close()
    await made.close()
    assert cluster.scales[2:] == [{"prefill": 1, "decode": 3}]
    untouched = Cluster(1, 1)
    made = running(untouched, monkeypatch)
    await made.shape(Shape(prefill=1, decode=1))
    await made.close()
    assert untouched.scales == []


async def test_pools_that_follow_the_load_are_held_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(1, 1)
    cluster.autoscale = {"mode": "on", "pools": {"prefill": {"pinned": True}, "decode": {"pinned": False, "min": 1}}}
    made = running(cluster, monkeypatch)
    for _ in range(2):
        await made.shape(Shape(prefill=1, decode=1))
    assert cluster.scales == [{"prefill": 1, "decode": 1}]
    await made.close()
    assert cluster.scales[1:] == [{"prefill": 1, "decode": 1}, {"decode": "auto"}]


async def test_a_cluster_that_cannot_be_given_back_is_said_and_hides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster, said = Cluster(1, 1), list[str]()
    running(cluster, monkeypatch)
    made = RunningCluster("http://10.0.0.9:70", "secret", said.append)
    monkeypatch.setattr(made, "door", AdminDoor("http://10.0.0.9:70", "secret", httpx.MockTransport(cluster)))
    await made.shape(Shape(prefill=2, decode=1))
    cluster.gone = True
    await made.close()
    assert "diptych scale prefill=1 decode=1" in said[-1]


async def test_what_does_not_fit_is_refused_before_anything_is_scaled(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(1, 1)
    made = running(cluster, monkeypatch)
    with pytest.raises(SystemUnavailable, match="tokens a step"):
        await made.shape(Shape(prefill=2, decode=2, max_batch_tokens=64))
    assert cluster.scales == []


async def test_a_router_that_listens_everywhere_is_where_the_admin_door_is(monkeypatch: pytest.MonkeyPatch) -> None:
    made = running(Cluster(1, 1, host="0.0.0.0"), monkeypatch)
    assert await made.shape(Shape(prefill=1, decode=1)) == "http://10.0.0.9:81"


async def test_locked_doors_are_asked_with_tls(monkeypatch: pytest.MonkeyPatch) -> None:
    made = running(Cluster(1, 1, tls=True), monkeypatch)
    assert await made.shape(Shape(prefill=1, decode=1)) == "https://127.0.0.1:81"
    made = running(Cluster(1, 1, host="[::]", tls=True), monkeypatch)
    assert await made.shape(Shape(prefill=1, decode=1)) == "https://10.0.0.9:81"


async def test_an_admin_door_is_believed_by_its_authority_or_its_own_file(tmp_path: Path) -> None:
    files = Authority(tmp_path).issue("127.0.0.1")
    elsewhere = Authority(tmp_path / "other").issue("localhost")
    for offered, trust, said in (
        (files, None, "cannot be reached.*--ca"),
        (files, trusting(files.ca), "is it an admin door"),
        (elsewhere, trusting(elsewhere.ca), "cannot be reached.*must name the host"),
        (elsewhere, pinned(elsewhere.cert), "is it an admin door"),
        (files, pinned(elsewhere.cert), "cannot be reached"),
    ):
        with locked_server(offered) as url:
            door = AdminDoor(url, "k", trust=trust)
            with pytest.raises(SystemUnavailable, match=said):
                await door.status()
            await door.close()


async def test_a_model_behind_a_certificate_that_is_not_believed_is_explained(tmp_path: Path) -> None:
    files = Authority(tmp_path).issue("127.0.0.1")
    with locked_server(files) as url:

        class System:
            cluster = ""

            async def shape(self, shape: Shape) -> str:
                return url

            async def close(self) -> None:
                pass

        for ca_file, said in (("", "--ca"), (files.ca, "404")):
            with pytest.raises(SystemUnavailable, match=said):
                await Served(System(), lambda: None, {}, ca_file=ca_file).shape(Shape(prefill=1, decode=1))


@contextmanager
def locked_server(files: Files) -> Iterator[str]:
    """Answers everything with 404, over TLS."""

    class Nothing(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            pass

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(files.cert, files.key)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Nothing) as listening:
        listening.socket = context.wrap_socket(listening.socket, server_side=True)
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        yield f"https://127.0.0.1:{listening.server_port}"
        listening.shutdown()


async def test_what_a_running_cluster_cannot_change_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    made = running(Cluster(1, 1), monkeypatch)
    with pytest.raises(SystemUnavailable, match=r"computes up to 512 tokens a step, the experiment wants .* 256"):
        await made.shape(Shape(prefill=1, decode=1, max_batch_tokens=256))
    made = running(Cluster(1, 1), monkeypatch)
    await made.shape(Shape(prefill=1, decode=1))
    with pytest.raises(SystemUnavailable, match=r'cannot change policy; .*backend = "cluster"'):
        await made.shape(Shape(prefill=1, decode=1, policy="random"))


async def test_without_prefill_workers_it_stays_open_what_the_router_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    made = running(Cluster(0, 2), monkeypatch)
    await made.shape(Shape(prefill=0, decode=2, remote_prefill="never"))
    await made.shape(Shape(prefill=1, decode=1, remote_prefill="prefer"))
    await made.shape(Shape(prefill=0, decode=2, remote_prefill="never"))
    with pytest.raises(SystemUnavailable, match="cannot change remote_prefill"):
        await made.shape(Shape(prefill=1, decode=1, remote_prefill="auto"))


async def test_the_doors_own_words_reach_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    made = running(Cluster(1, 1), monkeypatch)
    with pytest.raises(SystemUnavailable, match="HTTP 400, decode is 6; it must be 1 to 5"):
        await made.shape(Shape(prefill=1, decode=6))


async def test_a_door_that_is_not_there() -> None:
    made = RunningCluster("http://127.0.0.1:9", "k")
    with pytest.raises(SystemUnavailable, match="cannot be reached"):
        await made.shape(Shape(prefill=1, decode=1))


def test_without_prefill_workers_no_start_is_needed() -> None:
    pair = Shape(prefill=1, decode=1)
    assert pair.only_scales(Shape(prefill=0, decode=2, remote_prefill="never"))
    assert not pair.only_scales(Shape(prefill=1, decode=1, remote_prefill="never"))
    assert not pair.only_scales(Shape(prefill=1, decode=1, max_batch_tokens=64))
    preferring = Shape(prefill=1, decode=1, remote_prefill="prefer")
    assert preferring.only_scales(Shape(prefill=0, decode=2, remote_prefill="never"))
    assert not preferring.only_scales(pair)
    always = Shape(prefill=1, decode=1, remote_prefill="always")  # refuses everything without prefill workers
    assert not always.only_scales(Shape(prefill=0, decode=2, remote_prefill="never"))


def test_a_description_has_the_shape_in_it_and_survives_toml() -> None:
    given = {"model": "m ü\n", "options": {"block_size": 8}, "decode": {"num_cpus": 1.5, "options": {"threads": 2}}}
    shape = Shape(prefill=2, decode=3, policy="random", remote_prefill="always", max_batch_tokens=64)
    made = describe(given, shape, "mine")
    assert tomllib.loads(to_toml(made)) == made
    assert made["decode"] == {"num_cpus": 1.5, "count": 3, "options": {"threads": 2, "max_batch_tokens": 64}}
    assert made["prefill"] == {"count": 2, "options": {"max_batch_tokens": 64}}
    assert made["router"] == {"http_port": 0, "options": {"policy": "random", "remote_prefill": "always"}}
    assert (made["name"], made["options"]) == ("mine", {"block_size": 8})


def test_the_only_cluster_that_lives_is_found(tmp_path: Path) -> None:
    here = psutil.Process()

    def noted(name: str, pid: int, created_at_s: float = here.create_time()) -> None:
        door = {"name": name, "admin_url": f"http://{name}", "admin_key": "k", "pid": pid, "created_at_s": created_at_s}
        (tmp_path / f"{name}-{pid}.json").write_text(json.dumps(door))

    with pytest.raises(SystemUnavailable, match="there is none"):
        find_door(tmp_path)
    noted("mine", here.pid)
    noted("gone", 2**22 + 1)
    noted("long-gone", here.pid, here.create_time() - 3_600)  # whose number another process has by now
    (tmp_path / "half-1.json").write_text('{"name": "ha')  # is being written
    assert find_door(tmp_path).admin_url == "http://mine"
    noted("mine-too", here.pid)
    with pytest.raises(SystemUnavailable, match=r"mine \(.*mine-too"):
        find_door(tmp_path)
    assert find_door(tmp_path, "mine").admin_url == "http://mine"
    assert find_door(tmp_path, "mine-too").admin_url == "http://mine-too"


def test_a_cluster_that_has_ended_is_not_alive_before_its_parent_has_asked(tmp_path: Path) -> None:
    """A zombie keeps its number and its start time."""
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        process = psutil.Process(ended.pid)
        created_at_s = process.create_time()
        os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and is left for others to ask of
        assert process.status() == psutil.STATUS_ZOMBIE
        door = Door("mine", "http://mine", "k", ended.pid, created_at_s)
        assert not door.alive
        (tmp_path / "mine.json").write_bytes(msgspec.json.encode(door))
        with pytest.raises(SystemUnavailable, match="there is none"):
            find_door(tmp_path)


def test_a_process_that_may_not_be_looked_at_is_nobodys_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(pid: int) -> psutil.Process:
        raise psutil.AccessDenied(pid)

    monkeypatch.setattr(psutil, "Process", denied)
    assert not Door("mine", "http://mine", "k", 1, 0.0).alive


async def test_a_running_cluster_says_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    made = running(Cluster(1, 1), monkeypatch)
    backend = Served(made, lambda: made.door, {})
    assert backend.cluster == ""
    await made.shape(Shape(prefill=1, decode=1))
    assert backend.cluster == "blue"


async def test_a_stop_while_new_workers_are_settled_is_a_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client takes a cancellation for the end of its run, and returns what it has."""

    async def cut_off(config: RunConfig, **_: object) -> RunResult:
        result = a_result(config, 50.0, remote=True)
        return msgspec.structs.replace(result, valid=False, invalid_because=[STOPPED])

    monkeypatch.setattr(served, "run_once", cut_off)
    made = experiment()
    config = run_config(made, made.sweep.made()[0], 1, 1, ("http://127.0.0.1:1", "m"))
    backend = Served(running(Cluster(1, 1), monkeypatch), lambda: None, {})
    with pytest.raises(asyncio.CancelledError):
        await backend.settle(config)


async def test_use_is_read_from_the_status() -> None:
    door = AdminDoor("http://x", "k", httpx.MockTransport(Cluster(0, 2)))
    sampler = Sampler(door, clock=lambda: 5.0)
    status = await door.status()
    assert next(each.stats for each in status.processes) == Stats(1, 0, 0, 512, 10, 4)
    sampler._samples = [(0.0, status), (1.0, status)]
    use = sampler.use()
    assert use is not None
    assert use.prefill is None
    assert use.decode.busy == [1.0, 1.0]
    assert use.decode.kv_used == [0.4, 0.4]
    assert use.decode.mean_busy == 1.0
