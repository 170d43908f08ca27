"""Two routers of one cluster find each other, place in turn, and do without each other again when one is killed."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
from process_cluster import ProcessCluster
from scrape import scrape
from waiting import until


async def complete(client: httpx.AsyncClient, number: int) -> None:
    prompt = [3 + (number + i * 37) % 256 for i in range(40)]
    answer = await client.post("/v1/completions", json={"model": "tiny", "prompt": prompt, "max_tokens": 8})
    assert answer.status_code == 200, answer.text


async def others(client: httpx.AsyncClient) -> float:
    return (await scrape(client)).value("diptych_other_routers")


async def test_two_routers_share_their_load(model: Path, valkey_url: str, tmp_path: Path) -> None:
    async with ProcessCluster(model, valkey_url, tmp_path) as cluster:
        first, second = cluster.http, await cluster.add_router()
        doomed = cluster.routers[1]

        async def met() -> bool:
            return [await others(client) for client in (first, second)] == [1, 1]

        async def shared() -> bool:
            """A router that was too busy lately does not ask; it does again."""
            await asyncio.gather(*(complete(client, number) for number in range(4) for client in (first, second)))
            counts = [
                (await scrape(client)).value("diptych_reservations_total", outcome="reserved")
                for client in (first, second)
            ]
            return all(count > 0 for count in counts)

        await until(met, "both routers know of each other")
        await until(shared, "both routers reserve")
        await cluster.wait_quiet()
        for client in (first, second):
            samples = await scrape(client)
            told = samples.value("diptych_reservations_total")
            assert told == samples.value("diptych_placements_total")  # each of them, canaries left out

        await cluster.kill(doomed)

        async def forgotten() -> bool:
            return await others(first) == 0

        await until(forgotten, "the killed router is forgotten")
        await complete(first, 9)
        await cluster.wait_quiet()
