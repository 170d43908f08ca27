"""`scale POOL=auto` on its way from the command to the controller, and the status as metrics at the admin door."""

from __future__ import annotations

from collections.abc import Sequence

import httpx
import pytest

from deploy.admin_door import make_admin_app
from deploy.reconcile import Kind
from deploy.status import ClusterStatus
from deploy.verbs import _counts
from diptych.errors import BadRequest

HEADERS = {"Authorization": "Bearer a-key"}


class FakeCluster:
    def __init__(self) -> None:
        self.orders: list[object] = []

    def status(self) -> ClusterStatus:
        counts = dict.fromkeys(Kind, 1)
        return ClusterStatus(
            name="c", model="m", wanted=counts, processes=[], crashes=[], complete=False, controller_pid=1
        )

    def scale(self, counts: dict[Kind, int]) -> None:
        self.orders.append(counts)

    def release(self, pools: Sequence[Kind]) -> None:
        self.orders.append(list(pools))

    def drain(self, worker: str, *, replace: bool) -> None: ...
    def change_role(self, worker: str, role: Kind) -> None: ...


def door(cluster: FakeCluster) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(make_admin_app(cluster, "a-key", lambda: None))
    return httpx.AsyncClient(transport=transport, base_url="http://door", headers=HEADERS)


def test_the_command_takes_numbers_and_auto() -> None:
    assert _counts(("prefill=3", "decode=auto")) == {"prefill": 3, "decode": "auto"}
    for wrong in ("decode=many", "decode=-1", "walrus=auto"):
        with pytest.raises(BadRequest):
            _counts((wrong,))


async def test_the_door_releases_and_scales() -> None:
    cluster = FakeCluster()
    async with door(cluster) as client:
        answer = await client.post("/scale", json={"prefill": 2, "decode": "auto"})
        assert answer.status_code == 202
        assert cluster.orders == [[Kind.DECODE], {Kind.PREFILL: 2}]
        for wrong in ({"router": "auto"}, {"decode": "many"}, {}, {"prefill": "auto", "decode": 0}):
            assert (await client.post("/scale", json=wrong)).status_code == 400
        assert len(cluster.orders) == 2  # all of it or nothing


async def test_metrics_need_the_key() -> None:
    async with door(FakeCluster()) as client:
        answer = await client.get("/metrics")
        assert 'diptych_processes_wanted{role="router"} 1' in answer.text
        assert answer.headers["content-type"].startswith("text/plain")
        assert (await client.get("/metrics", headers={"Authorization": "Bearer other"})).status_code == 401
