"""Clients nobody here wrote: the `openai` Python client, curl, and a gRPC client that knows no more than what the
server's reflection tells it."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any
from uuid import uuid4

import grpc
import openai
import pytest
import pytest_asyncio
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from process_cluster import ProcessCluster
from reference import Reference, random_prompt

pytestmark = pytest.mark.asyncio(loop_scope="module")

HELLO: list[Any] = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Say something."}]
GREEDY: dict[str, Any] = {"model": "tiny", "temperature": 0, "extra_body": {"ignore_eos": True}}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(cluster: ProcessCluster) -> AsyncIterator[openai.AsyncOpenAI]:
    url = f"{cluster.base_url}/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key="not needed", max_retries=0, timeout=30) as client:
        yield client


# --- openai -------------------------------------------------------------------------------------------------------


async def test_openai_models(client: openai.AsyncOpenAI) -> None:
    assert [model.id async for model in client.models.list()] == ["tiny"]
    assert (await client.models.retrieve("tiny")).owned_by == "diptych"
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("gpt-4")


async def test_openai_chat(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(messages=HELLO, max_completion_tokens=9, **GREEDY)
    assert answer.object == "chat.completion"
    assert answer.model == "tiny"
    (choice,) = answer.choices
    assert choice.finish_reason == "length"
    assert choice.message.role == "assistant"
    assert choice.message.content
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 9
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 9


async def test_openai_chat_stream_says_the_same(client: openai.AsyncOpenAI) -> None:
    whole = await client.chat.completions.create(messages=HELLO, max_tokens=9, **GREEDY)
    stream = await client.chat.completions.create(
        messages=HELLO, max_tokens=9, stream=True, stream_options={"include_usage": True}, **GREEDY
    )
    chunks = [chunk async for chunk in stream]
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) == 1
    *answer, last = chunks
    assert answer[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in answer)
    assert text == whole.choices[0].message.content
    assert [chunk.choices[0].finish_reason for chunk in answer if chunk.choices[0].finish_reason] == ["length"]
    assert last.choices == []
    assert last.usage is not None
    assert whole.usage is not None
    assert last.usage.completion_tokens == whole.usage.completion_tokens


async def test_openai_completion_and_its_stream(client: openai.AsyncOpenAI) -> None:
    whole = await client.completions.create(prompt="once upon a time", max_tokens=9, **GREEDY)
    stream = await client.completions.create(prompt="once upon a time", max_tokens=9, stream=True, **GREEDY)
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert whole.choices[0].text
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason == "length"


async def test_openai_several_choices_and_prompts(client: openai.AsyncOpenAI) -> None:
    fields: dict[str, Any] = {"model": "tiny", "temperature": 1.0, "seed": 3, "max_tokens": 6}
    answer = await client.chat.completions.create(messages=HELLO, n=3, **fields)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in answer.choices}) == 3
    again = await client.chat.completions.create(messages=HELLO, n=3, **fields)
    assert [choice.message for choice in again.choices] == [choice.message for choice in answer.choices]

    both = await client.completions.create(prompt=["first prompt", "second prompt"], n=2, **fields)
    assert [choice.index for choice in both.choices] == [0, 1, 2, 3]
    one = await client.completions.create(prompt="second prompt", n=2, **fields)
    assert [choice.text for choice in both.choices[2:]] == [choice.text for choice in one.choices]


async def test_openai_logprobs(client: openai.AsyncOpenAI) -> None:
    chat = await client.chat.completions.create(messages=HELLO, max_tokens=5, logprobs=True, top_logprobs=2, **GREEDY)
    logprobs = chat.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert len(logprobs.content) == 5
    for entry in logprobs.content:
        assert entry.logprob <= 0
        assert entry.top_logprobs[0].token == entry.token  # greedy: the drawn one is the likeliest
        assert [top.logprob for top in entry.top_logprobs] == sorted((t.logprob for t in entry.top_logprobs), reverse=1)
    content = b"".join(bytes(entry.bytes or []) for entry in logprobs.content)
    assert content.decode(errors="replace") == chat.choices[0].message.content

    text = await client.completions.create(prompt="once", max_tokens=5, logprobs=2, **GREEDY)
    legacy = text.choices[0].logprobs
    assert legacy is not None
    assert legacy.tokens is not None
    assert len(legacy.tokens) == len(legacy.token_logprobs or ()) == len(legacy.top_logprobs or ()) == 5


@pytest.mark.parametrize(
    ("error", "code", "param", "fields"),
    [
        (openai.NotFoundError, "model_not_found", "model", {"model": "gpt-4"}),
        (openai.BadRequestError, "invalid_value", "temperature", {"temperature": 9}),
        (openai.BadRequestError, "invalid_value", "n", {"n": 1000}),
        (openai.BadRequestError, "context_length_exceeded", "messages", {"max_tokens": 1_000_000}),
        (openai.BadRequestError, "invalid_value", "messages[0].role", {"messages": [{"role": "x", "content": ""}]}),
    ],
)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_openai_errors(
    client: openai.AsyncOpenAI,
    error: type[openai.APIStatusError],
    code: str,
    param: str,
    fields: dict[str, Any],
    stream: bool,
) -> None:
    with pytest.raises(error) as raised:
        await client.chat.completions.create(**({"model": "tiny", "messages": HELLO, "stream": stream} | fields))
    assert raised.value.code == code
    assert raised.value.param == param
    assert raised.value.type == "invalid_request_error"


async def test_openai_stream_that_is_closed_early_leaves_nothing(
    client: openai.AsyncOpenAI, cluster: ProcessCluster
) -> None:
    stream = await client.chat.completions.create(messages=HELLO, max_tokens=1500, stream=True, **GREEDY)
    async for _ in stream:
        break
    await stream.close()
    await cluster.wait_quiet()


# --- curl ---------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_curl(cluster: ProcessCluster, stream: bool) -> None:
    body = json.dumps({"model": "tiny", "messages": HELLO, "max_tokens": 6, "temperature": 0, "stream": stream})
    url = f"{cluster.base_url}/v1/chat/completions"
    status, output = await curl("-N", url, "-H", "Content-Type: application/json", "-d", body)
    assert status == 0
    if not stream:
        assert json.loads(output)["choices"][0]["message"]["content"]
        return
    *events, done, end = output.split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    deltas = [json.loads(event.removeprefix("data: "))["choices"][0]["delta"] for event in events]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert "".join(delta.get("content", "") for delta in deltas)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
async def test_curl_fails_on_an_error(cluster: ProcessCluster) -> None:
    url = f"{cluster.base_url}/v1/completions"
    status, output = await curl("--fail-with-body", url, "-d", '{"model": "gpt-4", "prompt": "x"}')
    assert status == 22  # HTTP status of 400 or more
    assert json.loads(output)["error"]["code"] == "model_not_found"


async def curl(*arguments: str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        "curl", "--silent", "--noproxy", "*", "--max-time", "30", *arguments, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode()


# --- gRPC by reflection -------------------------------------------------------------------------------------------


class Reflected:
    """A service as its server describes it; calls block, so tests run them in threads."""

    def __init__(self, channel: grpc.Channel, service: str) -> None:
        self._channel = channel
        database = ProtoReflectionDescriptorDatabase(channel)
        self.services = set(database.get_services())
        self._service = DescriptorPool(database).FindServiceByName(service)

    def message(self, method: str, **fields: Any) -> Any:
        return GetMessageClass(self._service.methods_by_name[method].input_type)(**fields)

    def call(self, method: str, **fields: Any) -> Any:
        """A unary call's answer, or the iterator of a stream."""
        described = self._service.methods_by_name[method]
        kind = self._channel.unary_stream if described.server_streaming else self._channel.unary_unary
        call = kind(
            f"/{self._service.full_name}/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=GetMessageClass(described.output_type).FromString,
        )
        return call(self.message(method, **fields), timeout=30)


@pytest.fixture(scope="module")
def channel(cluster: ProcessCluster) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(cluster.grpc_address, options=(("grpc.enable_http_proxy", 0),)) as channel:
        yield channel


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def inference(channel: grpc.Channel) -> Reflected:
    return await asyncio.to_thread(Reflected, channel, "diptych.v1.Inference")


async def test_reflection_lists_the_services(inference: Reflected) -> None:
    assert {"diptych.v1.Inference", "grpc.health.v1.Health"} <= inference.services


async def test_grpc_model_info(inference: Reflected, cluster: ProcessCluster) -> None:
    info = await asyncio.to_thread(inference.call, "GetModelInfo")
    record = cluster.workers[0].record
    assert (info.model, info.max_context_tokens, info.block_size_tokens) == ("tiny", record.max_context, 16)
    assert info.fingerprint == record.fingerprint


async def test_grpc_generate_equals_http(inference: Reflected, cluster: ProcessCluster, reference: Reference) -> None:
    prompt = random_prompt(40, seed=1)
    sampling = {"max_tokens": 12, "temperature": 0, "ignore_eos": True, "logprobs": 2}
    messages = await asyncio.to_thread(
        lambda: list(inference.call("Generate", token_ids={"ids": prompt}, sampling=sampling))
    )
    body = {"model": "tiny", "prompt": prompt, "return_token_ids": True, **sampling}
    over_http = (await cluster.http.post("/v1/completions", json=body)).json()
    (choice,) = over_http["choices"]
    tokens = [token for message in messages for token in message.token_ids]
    assert tokens == choice["token_ids"] == reference.tokens(prompt, 12)
    assert "".join(message.text for message in messages) == choice["text"]
    assert [message.finish_reason for message in messages if message.finish_reason] == ["length"]
    logprobs = [entry.logprob for message in messages for entry in message.logprobs]
    assert logprobs == pytest.approx(choice["logprobs"]["token_logprobs"], abs=1e-3)
    usage = messages[-1].usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (40, 12)
    assert not any(message.HasField("usage") for message in messages[:-1])


async def test_grpc_generate_from_text(inference: Reflected, cluster: ProcessCluster) -> None:
    fields = {"max_tokens": 8, "temperature": 1.0, "seed": 4, "n": 2}
    messages = await asyncio.to_thread(lambda: list(inference.call("Generate", text="once upon", sampling=fields)))
    answer = await cluster.http.post("/v1/completions", json={"model": "tiny", "prompt": "once upon", **fields})
    for choice in answer.json()["choices"]:
        assert "".join(m.text for m in messages if m.choice == choice["index"]) == choice["text"]


async def test_grpc_abort(inference: Reflected, cluster: ProcessCluster) -> None:
    request_id = uuid4().hex
    sampling = {"max_tokens": 1500, "ignore_eos": True}

    def generate_and_abort() -> grpc.RpcError:
        stream = inference.call("Generate", request_id=request_id, text="go on", sampling=sampling)
        assert next(stream).request_id == request_id
        inference.call("Abort", request_id=request_id)
        with pytest.raises(grpc.RpcError) as ended:
            list(stream)
        return ended.value

    error: Any = await asyncio.to_thread(generate_and_abort)
    assert error.code() is grpc.StatusCode.CANCELLED
    await cluster.wait_quiet()
    await asyncio.to_thread(inference.call, "Abort", request_id="nobody knows this one")


@pytest.mark.parametrize(
    ("fields", "status", "code"),
    [
        ({"text": "x", "model": "gpt-4"}, "NOT_FOUND", "model_not_found"),
        ({"text": "x", "sampling": {"n": 99}}, "INVALID_ARGUMENT", "invalid_value"),
        ({"sampling": {"n": 1}}, "INVALID_ARGUMENT", "invalid_value"),
        ({"token_ids": {"ids": [100_000]}}, "INVALID_ARGUMENT", "invalid_value"),
        ({"text": "x", "sampling": {"max_tokens": 100_000}}, "INVALID_ARGUMENT", "context_length_exceeded"),
    ],
)
async def test_grpc_errors(inference: Reflected, fields: dict[str, Any], status: str, code: str) -> None:
    def generate() -> Any:
        with pytest.raises(grpc.RpcError) as raised:
            list(inference.call("Generate", **fields))
        return raised.value

    error = await asyncio.to_thread(generate)
    assert error.code().name == status
    assert dict(error.trailing_metadata())["diptych-code"] == code
    assert error.details()


async def test_grpc_health(channel: grpc.Channel) -> None:
    check: Callable[..., Any] = health_pb2_grpc.HealthStub(channel).Check
    for service in ("", "diptych.v1.Inference"):
        answer = await asyncio.to_thread(check, health_pb2.HealthCheckRequest(service=service), timeout=30)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
