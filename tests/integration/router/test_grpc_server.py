"""The gRPC door with a real server and client: generate, abort, health, reflection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from doors import Doors
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from scripted_core import ScriptedCore

from diptych.errors import ALL_ERRORS, LegFailed
from diptych.messages import LegStats
from diptych.v1 import inference_pb2 as pb
from diptych.v1 import inference_pb2_grpc
from router.frontend import HealthView
from router.grpc_door import SERVICE, serve_grpc

LIMIT_S = 30.0  # of what takes milliseconds, on a busy machine


@pytest.fixture
def doors(tmp_path: Path) -> Doors:
    doors = Doors(tmp_path, ScriptedCore(lambda _: []))
    doors.speak("größe 🦊 fox")
    return doors


@pytest.fixture
async def channel(doors: Doors) -> AsyncIterator[grpc.aio.Channel]:
    server, port = await serve_grpc(doors.frontend, lambda: doors.view)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel
    await server.stop(None)


@pytest.fixture
def stub(channel: grpc.aio.Channel) -> Any:
    return inference_pb2_grpc.InferenceStub(channel)


async def collect(stub: Any, **fields: Any) -> list[Any]:
    return [message async for message in stub.Generate(pb.GenerateRequest(**fields), timeout=LIMIT_S)]


async def test_text_in_text_out(stub: Any, doors: Doors) -> None:
    doors.core.prefill = LegStats(prompt_cached=3)
    messages = await collect(stub, text="hello", request_id="mine")
    assert "".join(message.text for message in messages) == "größe 🦊 fox"
    assert {message.request_id for message in messages} == {"mine"}
    assert [m.finish_reason for m in messages if m.finish_reason] == ["stop"] == [messages[-1].finish_reason]
    assert [m.HasField("usage") for m in messages] == [False] * (len(messages) - 1) + [True]
    usage = messages[-1].usage
    assert usage.completion_tokens == sum(len(message.token_ids) for message in messages)
    assert (usage.prompt_tokens, usage.cached_tokens) == (len(doors.core.requests[0].prompt), 3)


async def test_each_event_is_sent_when_it_happens(stub: Any, doors: Doors) -> None:
    doors.core.hold_after = 1
    call = stub.Generate(pb.GenerateRequest(text="x"))
    messages = aiter(call)
    first = await asyncio.wait_for(anext(messages), LIMIT_S)
    assert len(first.token_ids) == 1
    assert not first.HasField("usage")
    await asyncio.wait_for(doors.core.held.get(), LIMIT_S)
    doors.core.release.set()
    rest = [message async for message in messages]
    assert rest[-1].HasField("usage")


async def test_token_ids_and_sampling_arrive_with_the_http_doors_defaults(stub: Any, doors: Doors) -> None:
    given = pb.SamplingParams(temperature=0, n=2, seed=-5, stop=["fox"], logprobs=1, logit_bias={5: 1.5}, top_p=0.5)
    messages = await collect(stub, token_ids=pb.TokenIds(ids=[7, 8]), sampling=given, cache_salt="tenant", model="tiny")
    (request,) = doors.core.requests
    sampling = request.sampling
    assert (request.prompt, request.cache_scope) == ([7, 8], b"tenant")
    assert (sampling.temperature, sampling.n, sampling.seed, sampling.top_p) == (0, 2, -5, 0.5)
    assert (sampling.max_tokens, sampling.logit_bias, sampling.repetition_penalty) == (16, {5: 1.5}, 1.0)
    assert {message.choice for message in messages} == {0, 1}
    for i in range(2):
        own = [message for message in messages if message.choice == i]
        assert "".join(message.text for message in own) == "größe 🦊 "
        assert all(len(message.logprobs) == len(message.token_ids) for message in own)
        assert own[-1].finish_reason == "stop"


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({}, "INVALID_ARGUMENT", "prompt"),
        ({"text": "x", "model": "other"}, "NOT_FOUND", "model"),
        ({"text": "x", "sampling": pb.SamplingParams(n=9)}, "INVALID_ARGUMENT", "n"),
        ({"text": "x", "sampling": pb.SamplingParams(temperature=3)}, "INVALID_ARGUMENT", "temperature"),
        ({"text": "x", "sampling": pb.SamplingParams(temperature=float("nan"))}, "INVALID_ARGUMENT", "temperature"),
        ({"text": "x", "sampling": pb.SamplingParams(max_tokens=1000)}, "INVALID_ARGUMENT", "prompt"),
        ({"text": "x", "sampling": pb.SamplingParams(logprobs=21)}, "INVALID_ARGUMENT", "logprobs"),
        ({"token_ids": pb.TokenIds(ids=[100_000])}, "INVALID_ARGUMENT", "prompt"),
        ({"token_ids": pb.TokenIds()}, "INVALID_ARGUMENT", "prompt"),
    ],
)
async def test_the_same_limits_as_http(stub: Any, doors: Doors, fields: Any, status: str, param: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await collect(stub, **fields)
    assert caught.value.code() is grpc.StatusCode[status]
    assert dict(caught.value.trailing_metadata())["diptych-param"] == param
    assert doors.core.requests == []


@pytest.mark.parametrize("kind", ALL_ERRORS)
async def test_errors_mirror_the_http_table(stub: Any, doors: Doors, kind: type[Any]) -> None:
    doors.core.error = kind("why", retry_after_s=1.5)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await collect(stub, text="x")
    assert caught.value.code() is grpc.StatusCode[kind.grpc_status]
    assert caught.value.details() == "why"
    metadata = dict(caught.value.trailing_metadata())
    assert (metadata["diptych-code"], metadata["retry-after-ms"]) == (kind.code, "1500")


async def test_a_failure_in_mid_stream_keeps_what_came_before(stub: Any, doors: Doors) -> None:
    doors.core.error, doors.core.fail_after = LegFailed("the worker died"), 3
    seen: list[Any] = []

    async def read() -> None:
        async for message in stub.Generate(pb.GenerateRequest(text="x")):
            seen.append(message)

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await read()
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert len(seen) == 3
    assert not any(message.HasField("usage") for message in seen)


async def test_unexpected_errors_say_nothing_of_their_insides(stub: Any, doors: Doors) -> None:
    doors.core.error = RuntimeError("secret prompt")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await collect(stub, text="x")
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert "secret" not in (caught.value.details() or "") + doors.log.getvalue()
    assert "RuntimeError" in doors.log.getvalue()


async def test_a_client_that_cancels_closes_the_run(stub: Any, doors: Doors) -> None:
    doors.core.hold_after = 2
    call = stub.Generate(pb.GenerateRequest(text="x", request_id="mine"))
    await asyncio.wait_for(doors.core.holding.wait(), LIMIT_S)
    call.cancel()
    await asyncio.wait_for(doors.core.closed.wait(), LIMIT_S)
    assert doors.core.endings == ["cancelled"]
    doors.core.hold_after = None
    assert await collect(stub, text="x", request_id="mine"), "the id is free again"


async def test_abort_ends_the_stream_with_cancelled(stub: Any, doors: Doors) -> None:
    doors.core.hold_after = 2
    call = asyncio.create_task(collect(stub, text="x", request_id="mine"))
    await asyncio.wait_for(doors.core.holding.wait(), LIMIT_S)
    with pytest.raises(grpc.aio.AioRpcError, match="in use"):
        await collect(stub, text="x", request_id="mine")
    await asyncio.gather(*(stub.Abort(pb.AbortRequest(request_id="mine")) for _ in range(3)))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert caught.value.code() is grpc.StatusCode.CANCELLED
    assert caught.value.details() == "the request was aborted"
    assert doors.core.endings == ["cancelled"]
    await stub.Abort(pb.AbortRequest(request_id="unknown"))


async def test_model_info(stub: Any) -> None:
    info = await stub.GetModelInfo(pb.GetModelInfoRequest())
    assert (info.model, info.max_context_tokens, info.block_size_tokens) == ("tiny", 256, 16)
    assert info.fingerprint == "f00d"


async def test_health_follows_the_router(channel: grpc.aio.Channel, doors: Doors) -> None:
    health = health_pb2_grpc.HealthStub(channel)
    ask = health_pb2.HealthCheckRequest
    status = health_pb2.HealthCheckResponse
    for service in ("", SERVICE):
        assert (await health.Check(ask(service=service))).status == status.SERVING
    watch = health.Watch(ask(service=SERVICE), timeout=LIMIT_S)
    assert (await watch.read()).status == status.SERVING
    doors.view = HealthView(healthy=False, ready=True)
    assert (await health.Check(ask())).status == status.NOT_SERVING
    assert (await watch.read()).status == status.NOT_SERVING
    watch.cancel()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await health.Check(ask(service="other"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_reflection_lists_the_services_and_their_methods(channel: grpc.aio.Channel) -> None:
    reflect = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo
    ask = reflection_pb2.ServerReflectionRequest
    answers = [a async for a in reflect(iter([ask(list_services=""), ask(file_containing_symbol=SERVICE)]))]
    listed = {service.name for service in answers[0].list_services_response.service}
    assert listed >= {SERVICE, "grpc.health.v1.Health"}
    assert b"Generate" in answers[1].file_descriptor_response.file_descriptor_proto[0]


async def test_a_taken_port_is_an_error(doors: Doors) -> None:
    server, port = await serve_grpc(doors.frontend, lambda: doors.view)
    taken = Doors(Path(doors.frontend.config.model), doors.core, grpc_port=port)
    with pytest.raises(OSError):
        await serve_grpc(taken.frontend, lambda: doors.view)
    await server.stop(None)


async def test_priority_and_limit_reach_the_core(stub: Any, doors: Doors) -> None:
    await collect(stub, text="hello", priority=-4, ttft_limit_ms=250)
    await collect(stub, text="hello")
    first, second = doors.core.requests
    assert (first.priority, first.ttft_limit_ms) == (-4, 250)
    assert (second.priority, second.ttft_limit_ms) == (0, 0)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await collect(stub, text="hello", priority=11)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("request_id", ["x" * 129, "two words", "line\nbreak", "é"])
async def test_a_request_id_that_logs_and_headers_cannot_hold_is_refused(stub: Any, request_id: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError, match="request_id is 1 to 128 printable") as caught:
        await collect(stub, text="x", request_id=request_id)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
