"""The ways in which a client leaves a running request, over either door."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import grpc
import grpc.aio
import pytest
from process_cluster import ProcessCluster
from sse import DONE, read_events

from diptych.v1 import inference_pb2 as pb
from diptych.v1 import inference_pb2_grpc


class Running(ABC):
    """A request on its way. It generates greedily and does not stop before `max_tokens`."""

    def __init__(self, cluster: ProcessCluster, prompt: list[int], max_tokens: int) -> None:
        self.cluster, self.prompt, self.max_tokens = cluster, prompt, max_tokens
        self.tokens: list[int] = []  # as they came, where the answer is a stream
        self.task = asyncio.create_task(self._run())

    @abstractmethod
    async def _run(self) -> None:
        """Read the answer to its end."""

    async def leave(self) -> None:
        """Go away from a request that is not over."""
        assert not self.task.done(), "it ended before it could be left"
        await self.close()

    async def close(self) -> None:
        """Leave nothing running, whatever has happened."""
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)

    async def got(self, num_tokens: int) -> bool:
        if self.task.done():
            self.task.result()
        return len(self.tokens) >= num_tokens


class HttpWhole(Running):
    """Closes the connection while it waits for the whole answer."""

    async def _run(self) -> None:
        answer = await self.cluster.http.post("/v1/completions", json=self._body())
        assert answer.status_code == 200, answer.text
        self.tokens = answer.json()["choices"][0]["token_ids"]

    def _body(self, **more: Any) -> dict[str, Any]:
        return {
            "model": "tiny",
            "prompt": self.prompt,
            "max_tokens": self.max_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "return_token_ids": True,
            **more,
        }


class HttpStream(HttpWhole):
    """Closes the connection in the middle of a stream."""

    async def _run(self) -> None:
        async with self.cluster.http.stream("POST", "/v1/completions", json=self._body(stream=True)) as response:
            assert response.status_code == 200, await response.aread()
            async for event in read_events(response):
                assert event == DONE or "error" not in event, event
                if event != DONE and event["choices"]:
                    self.tokens += event["choices"][0].get("token_ids", [])


class GrpcCancel(Running):
    """Cancels the call."""

    def __init__(self, cluster: ProcessCluster, prompt: list[int], max_tokens: int) -> None:
        self.request_id = uuid4().hex
        self.channel = grpc.aio.insecure_channel(cluster.grpc_address, options=(("grpc.enable_http_proxy", 0),))
        self.stub = inference_pb2_grpc.InferenceStub(self.channel)
        super().__init__(cluster, prompt, max_tokens)

    async def _run(self) -> None:
        sampling = pb.SamplingParams(max_tokens=self.max_tokens, temperature=0, ignore_eos=True)
        request = pb.GenerateRequest(
            request_id=self.request_id, token_ids=pb.TokenIds(ids=self.prompt), sampling=sampling
        )
        async for message in self.stub.Generate(request):
            self.tokens += message.token_ids

    async def close(self) -> None:
        await super().close()
        await self.channel.close()


class GrpcAbort(GrpcCancel):
    """Asks for the end with `Abort`; the stream then says CANCELLED."""

    async def leave(self) -> None:
        assert not self.task.done(), "it ended before it could be left"
        await self.stub.Abort(pb.AbortRequest(request_id=self.request_id))
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            async with asyncio.timeout(5):
                await self.task
        assert ended.value.code() is grpc.StatusCode.CANCELLED


STREAMS: tuple[type[Running], ...] = (HttpStream, GrpcCancel, GrpcAbort)
WAYS: tuple[type[Running], ...] = (HttpWhole, *STREAMS)


@asynccontextmanager
async def running(way: Callable[..., Running], *args: Any) -> AsyncIterator[Running]:
    """A request that is over, one way or another, when the block is left."""
    request = way(*args)
    try:
        yield request
    finally:
        await request.close()
