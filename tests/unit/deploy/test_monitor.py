"""From when on a worker counts as serving: not before every router has had time to say that it is still probed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from redis.asyncio import Redis

from deploy.autoscale import AutoscaleSettings
from deploy.autoscaling import Autoscaling
from deploy.cluster_config import Limits
from deploy.monitor import Monitor
from deploy.reconcile import Kind, State
from deploy.wanted import Wanted

NOWHERE = "127.0.0.1:1"
SETTLE_S = 0.2


class Door:
    """A router's /health."""

    def __init__(self) -> None:
        self.probing: dict[str, str] = {}
        self.instead: Any = None  # said in place of what a router says
        self.num_asked = 0
        self.url = ""

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Door]:
        server = await asyncio.start_server(self._answer, "127.0.0.1", 0)
        async with server:
            self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            yield self

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        self.num_asked += 1
        details = {"decode_workers": 1, "probing": self.probing, "queued_tokens": 70}
        body = msgspec.json.encode({"details": details} if self.instead is None else self.instead)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(body) + body)
        await writer.drain()
        writer.close()


@pytest.fixture
async def monitor(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Monitor]:
    monkeypatch.setattr("deploy.monitor.SETTLE_S", SETTLE_S)
    monkeypatch.setattr("deploy.monitor.TICK_S", 0.02)
    redis = Redis.from_url(f"redis://{NOWHERE}")  # nobody asks it in here
    made = Monitor(redis, "test", Limits(), lambda: None)
    yield made
    await made.close()
    await redis.aclose()


async def until(holds: Callable[[], bool]) -> None:
    deadline = asyncio.get_running_loop().time() + 10.0
    while not holds():
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.01)


async def test_a_worker_is_probed_until_every_router_had_time_to_say_so(monitor: Monitor) -> None:
    async with Door().open() as first, Door().open() as second:
        monitor.watch_router("r1", first.url)
        await until(lambda: first.num_asked > 1)
        assert monitor.is_probing("d1")  # it runs, and nobody has looked at it yet
        monitor.watch_worker("d1", "d1@host", NOWHERE)
        monitor.watch_router("r2", "http://" + NOWHERE)
        asked = first.num_asked
        await until(lambda: first.num_asked > asked + 2 * SETTLE_S / 0.02)
        assert monitor.is_probing("d1")  # the second router has said nothing
        monitor.keep({"d1", "r1"})
        await until(lambda: not monitor.is_probing("d1"))
        monitor.watch_router("r3", second.url)
        assert not monitor.is_probing("d1")  # a router that begins un-proves nobody
        await until(lambda: monitor.queued_tokens == 70 * len(monitor._doors))
        first.probing = {"d1@host": ""}
        await until(lambda: monitor.is_probing("d1"))


@pytest.mark.parametrize("instead", [[], "hello", {"details": {"decode_workers": "many"}}, {"error": {}}])
async def test_who_answers_at_a_routers_port_and_is_none_is_not_believed(monitor: Monitor, instead: object) -> None:
    async with Door().open() as door:
        monitor.watch_router("r1", door.url)
        await until(lambda: bool(monitor.placeable()))
        door.instead = instead
        await until(lambda: not monitor.placeable())
        asked = door.num_asked
        await until(lambda: door.num_asked > asked + 1)  # it is asked again
        assert not monitor._tasks["r1"].done()
        vitals = monitor.vitals("r1")
        assert vitals is not None
        vitals.age(100.0)
        asked = door.num_asked
        await until(lambda: door.num_asked > asked + 1)
        assert vitals.silent_s >= 100.0  # and is no router that lives


async def test_without_a_router_nobody_serves(monitor: Monitor) -> None:
    monitor.watch_worker("d1", "d1@host", NOWHERE)
    assert monitor.is_probing("d1")


class Pools:
    def __init__(self, hosted: Any) -> None:
        self.wanted = Wanted(counts={Kind.DECODE: 1})
        self.start_s: dict[Kind, float] = {}
        self._hosted = hosted

    def __iter__(self) -> Any:
        return iter([self._hosted])


async def test_a_start_lasts_until_the_canary_went_through(monitor: Monitor) -> None:
    hosted = SimpleNamespace(id="d1", kind=Kind.DECODE, state=State.STARTING, worker_id="d1@host")
    pools = Pools(hosted)
    settings = AutoscaleSettings(mode="advise")
    autoscaling = Autoscaling(settings, pools, monitor, lambda _: False)  # type: ignore[arg-type]
    async with Door().open() as door:
        monitor.watch_router("r1", door.url)
        await until(lambda: door.num_asked > 1)
        autoscaling.look(0.0)
        hosted.state = State.RUNNING
        monitor.watch_worker("d1", "d1@host", NOWHERE)
        autoscaling.look(1.0)  # the router has not listed it yet
        assert pools.start_s == {}
        door.probing = {"d1@host": ""}
        await until(lambda: "d1" not in monitor._new_since_s)
        autoscaling.look(20.0)
        assert pools.start_s == {}
        door.probing = {}
        await until(lambda: not monitor.is_probing("d1"))
        autoscaling.look(30.0)
        assert pools.start_s[Kind.DECODE] == 30.0
