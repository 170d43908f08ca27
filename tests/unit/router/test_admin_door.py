from __future__ import annotations

import io
from collections.abc import AsyncIterator
from typing import Any, cast

import httpx
import pytest
from placement_views import choose, decode, prefill

from diptych.messages import Role, SamplingParams, WorkerRecord, WorkerState, WorkerStats
from diptych.telemetry import make_logger
from kv_transfer.schema import EventBatch, IndexEvent
from router.admin_door import make_admin_app
from router.explain import ExplainRing
from router.fleet import Compatibility, Fleet
from router.index_reader import IndexReader
from router.prefix_index import PrefixIndex
from router.requests import TokenRequest
from router.worker_link import WorkerLink


class StillLink(WorkerLink):
    def __init__(self, record: WorkerRecord) -> None:
        self.record, self.stats, self.connected = record, WorkerStats(blocks_free=8, num_running=3), True


@pytest.fixture
def ring() -> ExplainRing:
    ring = ExplainRing(8, "min-ttft", "auto")
    for name in ("one", "two"):
        request = TokenRequest(name, [1] * 160, SamplingParams(max_tokens=4, seed=1), client_id=f"my/{name}")
        ring.placed(request, choose(prefill("p"), decode("d")), 0, 0.0)
    return ring


@pytest.fixture
async def client(ring: ExplainRing) -> AsyncIterator[httpx.AsyncClient]:
    log = make_logger("test", stream=io.StringIO())
    fleet = Fleet("router-1", Compatibility("fp", 16), 3.0, log)
    fleet.adopt(StillLink(_record()))
    index = PrefixIndex()
    index.add_worker("decode-1")
    index.apply("decode-1", EventBatch(0, 1, [IndexEvent(stored=bytes(range(64)))]))
    reader = IndexReader(cast(Any, None), "test", index)
    app = make_admin_app(fleet, reader, ring, log)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://admin") as client:
        yield client


def _record() -> WorkerRecord:
    return WorkerRecord(
        worker_id="decode-1",
        role=Role.DECODE,
        address="127.0.0.1:1",
        state=WorkerState.READY,
        model="tiny",
        fingerprint="fp",
        block_size=16,
        num_blocks=8,
        block_bytes=1,
        max_context=128,
        started_at=0.0,
    )


async def test_workers_are_listed_with_what_they_report(client: httpx.AsyncClient) -> None:
    answer = (await client.get("/workers")).json()
    (worker,) = answer["workers"]
    assert worker["worker"]["worker_id"] == "decode-1"
    assert worker["placeable"] is True
    assert worker["stats"]["num_running"] == 3
    assert answer["refused"] == {}


async def test_the_index_says_what_it_believes_and_why_it_may_be_old(client: httpx.AsyncClient) -> None:
    answer = (await client.get("/index")).json()
    assert answer["workers"]["decode-1"]["blocks"] == answer["blocks"] > 0
    assert answer["workers"]["decode-1"]["position"] == [0, 1]
    assert answer["bytes"] > 0
    assert (answer["precision"], answer["recall"]) == (1.0, 1.0)
    assert answer["degraded"]


@pytest.mark.parametrize("name", ["two", "my/two"])
async def test_a_request_is_explained_by_its_id_and_by_the_client_s(client: httpx.AsyncClient, name: str) -> None:
    answer = (await client.get(f"/explain/{name}")).json()
    assert answer["request_id"] == "two"
    assert answer["decisions"][0]["candidates"]
    assert answer["outcome"] is None


async def test_what_is_not_remembered_is_404_and_what_is_can_be_listed(client: httpx.AsyncClient) -> None:
    missing = await client.get("/explain/three")
    assert missing.status_code == 404
    assert "latest 8" in missing.json()["error"]["message"]
    assert (await client.get("/explain")).json() == {"requests": ["two", "one"]}
    assert (await client.get("/explain?limit=1")).json() == {"requests": ["two"]}
    for limit in ("some", "-1", "²", "9" * 5_000):
        assert (await client.get("/explain", params={"limit": limit})).status_code == 400
