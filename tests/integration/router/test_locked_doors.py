"""The client doors with keys and TLS: who gets in, over both, and that a tenant cannot touch another's requests."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import httpx
import pytest
from certificates import Authority, Files
from doors import Doors
from grpc_health.v1 import health_pb2, health_pb2_grpc
from scripted_core import ScriptedCore

from deploy.doors import read_health
from deploy.reconcile import Kind
from diptych.tls import read_pem
from diptych.v1 import inference_pb2 as pb
from diptych.v1 import inference_pb2_grpc
from router.frontend import HealthView
from router.grpc_door import serve_grpc
from router.keys import key_entry, new_key
from router.process import _http_server

LIMIT_S = 5.0
ACME, OTHER = new_key(), new_key()
CHAT = {"messages": [{"role": "user", "content": "hello"}]}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """The doors' certificate."""
    return Authority(tmp_path_factory.mktemp("ca")).issue("127.0.0.1")


@pytest.fixture
def doors(tmp_path: Path, files: Files) -> Doors:
    keys = tmp_path / "keys.toml"
    keys.write_text(key_entry("acme", ACME) + key_entry("other", OTHER))
    doors = Doors(
        tmp_path,
        ScriptedCore(lambda _: []),
        api_keys_file=str(keys),
        tls_cert_file=files.cert,
        tls_key_file=files.key,
    )
    doors.speak("fox")
    return doors


@pytest.fixture
async def client(doors: Doors, files: Files) -> AsyncIterator[httpx.AsyncClient]:
    trust = ssl.create_default_context(cafile=files.ca)
    async with (
        _http_server(doors.app, "127.0.0.1", 0, (files.cert, files.key)) as address,
        httpx.AsyncClient(base_url=f"https://{address}", verify=trust, timeout=LIMIT_S, trust_env=False) as client,
    ):
        yield client


@pytest.fixture
async def channel(doors: Doors, files: Files) -> AsyncIterator[grpc.aio.Channel]:
    server, port = await serve_grpc(doors.frontend, lambda: doors.view)
    trust = grpc.ssl_channel_credentials(read_pem(files.ca))
    async with grpc.aio.secure_channel(f"127.0.0.1:{port}", trust) as channel:
        yield channel
    await server.stop(None)


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


async def test_a_key_opens_the_http_door_as_its_tenant(client: httpx.AsyncClient, doors: Doors) -> None:
    for key in (ACME, OTHER):
        answer = await client.post("/v1/chat/completions", json=CHAT, headers=bearer(key))
        assert answer.status_code == 200
    first, second = (request.cache_scope for request in doors.core.requests)
    assert first != second
    assert all(scope for scope in (first, second))


@pytest.mark.parametrize(
    "path", ["/v1/models", "/metrics", "/version", "/v1/chat/completions", "/tokenize", "/nothing", "/v1/models/tiny"]
)
async def test_without_a_key_nothing_but_health_is_shown(client: httpx.AsyncClient, doors: Doors, path: str) -> None:
    for headers in ({}, bearer("sk-diptych-wrong")):
        answer = await client.request("POST" if "/v1/chat" in path else "GET", path, headers=headers)
        assert answer.status_code == 401
        assert answer.json()["error"]["code"] == "invalid_api_key"
        assert answer.headers["x-request-id"]
    assert doors.core.requests == []
    assert doors.counted("invalid_api_key") == 2
    assert (await client.get("/health")).status_code == 200
    assert (await client.get("/live")).status_code == 200
    assert ACME not in doors.log.getvalue()


async def test_health_tells_strangers_counts_and_no_more(client: httpx.AsyncClient, doors: Doors) -> None:
    details = {
        "decode_workers": 2,
        "queued_tokens": 3,
        "probing": {"decode-7": "10.1.2.3:5 refused"},
        "degraded": ["6379"],
    }
    doors.view = HealthView(healthy=False, ready=True, reasons=("10.1.2.3:5 is away",), details=details)
    for headers in ({}, bearer("sk-diptych-wrong")):
        answer = await client.get("/health", headers=headers)
        assert answer.status_code == 503
        told = {"decode_workers": 2, "queued_tokens": 3, "probing": {"decode-7": ""}}
        assert answer.json() == {"healthy": False, "ready": True, "reasons": [], "details": told}
        seen = read_health(answer.content)  # by the controller
        assert seen.num_workers == {Kind.PREFILL: 0, Kind.DECODE: 2}
        assert (set(seen.details.probing), seen.details.queued_tokens) == ({"decode-7"}, 3)
    answer = await client.get("/health", headers=bearer(ACME))
    assert (answer.json()["reasons"], answer.json()["details"]) == (["10.1.2.3:5 is away"], details)


async def test_plain_http_gets_no_answer_from_a_tls_door(client: httpx.AsyncClient) -> None:
    async with httpx.AsyncClient(base_url=str(client.base_url).replace("https", "http"), trust_env=False) as plain:
        with pytest.raises(httpx.RemoteProtocolError):
            await plain.get("/health")


async def test_a_certificate_nobody_vouches_for_is_refused_by_the_client(client: httpx.AsyncClient) -> None:
    async with httpx.AsyncClient(base_url=client.base_url, trust_env=False) as strict:
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            await strict.get("/health")


async def generate(stub: Any, key: str, **fields: Any) -> list[Any]:
    request, metadata = pb.GenerateRequest(text="hello", **fields), tuple(bearer(key).items())
    call = stub.Generate(request, metadata=metadata, timeout=LIMIT_S)
    return [message async for message in call]


async def test_a_key_opens_the_grpc_door(channel: grpc.aio.Channel, doors: Doors) -> None:
    stub = inference_pb2_grpc.InferenceStub(channel)
    assert "".join(message.text for message in await generate(stub, ACME)) == "fox"
    info = await stub.GetModelInfo(pb.GetModelInfoRequest(), metadata=tuple(bearer(OTHER).items()), timeout=LIMIT_S)
    assert info.model == "tiny"
    for call in (
        generate(stub, "wrong"),
        stub.GetModelInfo(pb.GetModelInfoRequest(), timeout=LIMIT_S),
        stub.Abort(pb.AbortRequest(request_id="x"), timeout=LIMIT_S),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert doors.counted("invalid_api_key") == 3
    health = health_pb2_grpc.HealthStub(channel)
    assert (await health.Check(health_pb2.HealthCheckRequest(), timeout=LIMIT_S)).status == 1


async def test_a_tenant_cannot_abort_anothers_request(channel: grpc.aio.Channel, doors: Doors) -> None:
    doors.core.hold_after = 0
    stub = inference_pb2_grpc.InferenceStub(channel)
    running = asyncio.create_task(generate(stub, ACME, request_id="mine"))
    await asyncio.wait_for(doors.core.holding.wait(), LIMIT_S)
    await stub.Abort(pb.AbortRequest(request_id="mine"), metadata=tuple(bearer(OTHER).items()), timeout=LIMIT_S)
    assert not running.done()
    await stub.Abort(pb.AbortRequest(request_id="mine"), metadata=tuple(bearer(ACME).items()), timeout=LIMIT_S)
    with pytest.raises(grpc.aio.AioRpcError) as ended:
        await running
    assert ended.value.code() is grpc.StatusCode.CANCELLED
