"""Redis slow, full, read-only, flushed and gone under routers that share their load: nobody waits, all agree again.

What a placement waited for Redis is what the router itself measured, so that a busy machine does not decide the test.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
from placing import World, routers, sharing
from redis.asyncio import Redis
from redis_server import RedisServer

from diptych.membership import connect
from diptych.messages import Role
from router.placer import Booked

WORKERS = [f"{role}-{number}" for role in Role for number in range(4)]
WAIT_S, HEALED_S = 0.005, 30.0
NOISE_S = 1.0  # of this machine, in what one placement takes; a call to a Redis that is gone may take 2 s


@dataclass
class Setting:
    server: RedisServer
    admin: Redis
    routers: list[World]

    async def place(self, number: int, seed: int = 0) -> list[Booked]:
        """One after the other, as if each were the only one; none may take longer than it may wait."""
        booked = []
        for i in range(number):
            began = time.perf_counter()
            booked.append(await self.routers[i % len(self.routers)].place(f"{seed}-{i}", seed + i))
            assert time.perf_counter() - began < WAIT_S + NOISE_S
        return booked

    async def until_degraded(self, reason: str) -> None:
        async with asyncio.timeout(HEALED_S):
            while not all(reason in _degraded(world) for world in self.routers):
                await self.place(2)
                await asyncio.sleep(0.005)

    async def healed(self) -> None:
        """All agree on what is booked, also on what was placed during the fault, and reserve again."""
        async with asyncio.timeout(HEALED_S):
            while any(_degraded(world) for world in self.routers) or not self._agree():  # noqa: ASYNC110
                await asyncio.sleep(0.005)
            for world in self.routers:
                before = world.outcomes().get("reserved", 0)
                while world.outcomes().get("reserved", 0) == before:
                    (await world.place("again", 99)).booking.release()
                    await asyncio.sleep(0.005)

    def _agree(self) -> bool:
        views = {tuple(world.bookings.load(name) for name in WORKERS) for world in self.routers}
        sequences = sum(sum(world.bookings.sequences.values()) for world in self.routers)
        return len(views) == 1 and sum(load.sequences for load in views.pop()) == sequences


def _degraded(world: World) -> str:
    assert world.reservations is not None
    return world.reservations.degraded


@pytest.fixture
async def setting(own_valkey: RedisServer) -> AsyncIterator[Setting]:
    clients = [connect(own_valkey.url) for _ in range(3)]
    worlds = [routers(client, "c", 2, WORKERS)[number] for number, client in enumerate(clients[:2])]
    async with sharing(*worlds):
        yield Setting(own_valkey, clients[2], worlds)
    for client in clients:
        await client.aclose()


async def test_paused(setting: Setting) -> None:
    setting.server.freeze()
    await setting.until_degraded("timeout")
    await setting.place(20, seed=100)
    asked = sum(world.outcomes().get("timeout", 0) for world in setting.routers)
    assert asked <= 2 * len(setting.routers)  # each pays once, perhaps once more
    assert sum(world.outcomes().get("skipped", 0) for world in setting.routers) >= 20
    setting.server.thaw()
    await setting.healed()


async def test_full(setting: Setting) -> None:
    await setting.place(4)
    await setting.admin.config_set("maxmemory", 1)
    await setting.until_degraded("out_of_memory")
    await setting.place(20, seed=100)
    await setting.admin.config_set("maxmemory", 0)
    await setting.healed()


async def test_read_only_as_after_a_failover(setting: Setting) -> None:
    await setting.place(4)
    await setting.admin.execute_command("REPLICAOF", "127.0.0.1", "1")
    await setting.until_degraded("read_only")
    await setting.place(20, seed=100)
    await setting.admin.execute_command("REPLICAOF", "NO", "ONE")
    await setting.healed()


async def test_flushed(setting: Setting) -> None:
    await setting.place(8)
    await setting.admin.flushall()
    await setting.admin.script_flush()
    await setting.place(8, seed=100)
    await setting.healed()


async def test_killed_and_back_empty(setting: Setting) -> None:
    await setting.place(4)
    await asyncio.to_thread(setting.server.stop)
    await setting.until_degraded("unreachable")
    await setting.place(20, seed=100)
    await asyncio.to_thread(setting.server.start)
    await setting.healed()


async def test_absent_from_the_start(own_valkey: RedisServer) -> None:
    own_valkey.stop()
    client = connect(own_valkey.url)
    setting = Setting(own_valkey, client, routers(client, "c", 2, WORKERS))
    async with sharing(*setting.routers, meet=False):
        await setting.until_degraded("unreachable")
        await setting.place(20)
        assert not any("unreachable" in world.outcomes() for world in setting.routers)  # nobody has asked
        await asyncio.to_thread(own_valkey.start)
        await setting.healed()
    await client.aclose()


@pytest.mark.slow
async def test_cut_connections(setting: Setting) -> None:
    for seed in range(5):
        await setting.admin.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        await setting.place(4, seed)
    await setting.healed()


@pytest.mark.slow
async def test_a_router_that_is_killed_is_forgotten_with_its_lease(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("load.LEASE_S", "log.LEASE_S"):
        monkeypatch.setattr(f"router.sharing.{name}", 1.2)
    first, second = setting.routers
    doomed = routers(setting.admin, "c", 3, WORKERS)[2]
    booked = await doomed.place("doomed")
    await doomed.talk.exchange()  # its last word

    def believed() -> set[int]:
        return {world.others.load(booked.placement.decode_id).sequences for world in (first, second)}

    async with asyncio.timeout(HEALED_S):
        while believed() != {1}:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        while believed() != {0}:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        while any(len(world.others.routers) > 1 for world in (first, second)):  # noqa: ASYNC110
            await asyncio.sleep(0.005)
