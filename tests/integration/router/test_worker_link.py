"""What a request is told when its worker's stream ends: a loss, or that it has left in good order."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest

from diptych import messages as m
from diptych import rpc
from diptych.errors import DiptychError, Draining, LegFailed
from diptych.telemetry import make_logger
from router.mailbox import Mailbox
from router.worker_link import WorkerLink

LIMIT_S = 30.0  # of what takes milliseconds, on a busy machine


class Worker:
    """Sends one frame, and ends its stream when told to."""

    def __init__(self) -> None:
        self.leave = asyncio.Event()

    async def frames(self, request: m.Subscribe) -> AsyncIterator[m.Frame]:
        yield m.Frame("w", 0, [], m.WorkerStats())
        await self.leave.wait()

    async def nothing(self, request: Any) -> Any:
        raise NotImplementedError

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return self.nothing


@pytest.mark.parametrize(("state", "told"), [(m.WorkerState.READY, LegFailed), (m.WorkerState.DRAINING, Draining)])
async def test_a_stream_that_ends(state: m.WorkerState, told: type[DiptychError]) -> None:
    worker, server, up = Worker(), rpc.make_server(), asyncio.Event()
    rpc.add_to_server(worker, server)  # type: ignore[arg-type]
    port = rpc.listen(server, "127.0.0.1:0", None)
    await server.start()
    record = m.WorkerRecord(
        worker_id="w",
        role=m.Role.PREFILL,
        address=f"127.0.0.1:{port}",
        state=m.WorkerState.READY,
        model="tiny",
        fingerprint="fp",
        block_size=16,
        num_blocks=8,
        block_bytes=1,
        max_context=128,
        started_at=0.0,
    )
    link = WorkerLink(record, "router", 60.0, up.set, make_logger("test", stream=io.StringIO()))
    try:
        await asyncio.wait_for(up.wait(), LIMIT_S)
        mailbox = Mailbox(1)
        link.join("r", mailbox)
        link.record = msgspec.structs.replace(record, state=state)
        worker.leave.set()
        with pytest.raises(told) as caught:
            await mailbox.next(asyncio.get_running_loop().time() + LIMIT_S)
        assert type(caught.value) is told
    finally:
        await link.close(LegFailed("over"))
        await server.stop(None)
