"""A process dies or stops answering: what it did is done again by others, with the same tokens; where there are no
others its requests end with a definite error. Nobody hangs, the others' blocks come back, and the cluster serves again
once a replacement is there."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import httpx
import pytest
import pytest_asyncio
from going_away import GrpcCancel, running
from grpc_health.v1 import health_pb2, health_pb2_grpc
from process_cluster import ProcessCluster
from processes import Process
from reference import BLOCK, Reference, random_prompt
from sse import DONE, read_events
from tiny_model import make_tiny_model
from waiting import until

from diptych.membership import connect, tombstone
from diptych.messages import Role, WorkerRecord

ERROR_WITHIN_S = 15.0  # on a busy machine; after a stop 3 s are silence, after a kill none (`lost_with_its_connection`)
AGAIN_WITHIN_S = 60.0  # a long prompt computed a second time
LONG_PROMPT, LONG_ANSWER = 6000, 2000  # tokens: seconds of prefill and of decode
COMPLETIONS = "/v1/completions"
SLOW_PREFILL = {Role.PREFILL: {"max_batch_tokens": 4}}  # many steps for a long prompt
DEEP_QUEUES = {"max_worker_queue_ms": 600_000}  # requests wait in workers, where they have something to lose
REMOTE_IF_POSSIBLE = {"remote_prefill": "prefer", **DEEP_QUEUES}  # an idle decode worker would keep such prompts
Reap = Callable[[], Awaitable[None]]
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model") / "tiny", max_context=8192)


@pytest.fixture(scope="module")
def reference(model: Path) -> Reference:
    return Reference(model)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def deaths(
    model: Path, valkey_url: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[ProcessCluster]:
    """Its router lives through everything that happens here."""
    logs = tmp_path_factory.mktemp("logs")
    room = {"kv_cache_bytes": 32 << 20}  # for long prompts beside the quarantined blocks of others
    async with ProcessCluster(
        model, valkey_url, logs, worker=room, by_role=SLOW_PREFILL, router=REMOTE_IF_POSSIBLE
    ) as cluster:
        yield cluster


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def reap(valkey_url: str, deaths: ProcessCluster) -> AsyncIterator[Reap]:
    """Declares who was killed dead, as the controller does once it has reaped the process."""
    redis = connect(valkey_url)

    async def declare() -> None:
        for process in deaths.killed:
            assert process.process.returncode is not None
            if isinstance(process.record, WorkerRecord):
                await tombstone(redis, deaths.name, process.record.worker_id)

    yield declare
    await redis.aclose()


@pytest_asyncio.fixture(loop_scope="module")
async def cluster(deaths: ProcessCluster, reap: Reap) -> ProcessCluster:
    """One worker of each role again: whoever was killed before is replaced."""
    await reap()
    deaths.workers = [worker for worker in deaths.workers if worker.process.returncode is None]
    missing = [role for role in Role if not deaths.of_role(role)]
    await asyncio.gather(*map(deaths.start_worker, missing))
    await deaths.wait_healthy()
    await deaths.wait_quiet()
    return deaths


def the(cluster: ProcessCluster, role: Role) -> Process:
    (worker,) = cluster.of_role(role)
    return worker


def body(prompt: list[int], max_tokens: int, **more: Any) -> dict[str, Any]:
    shared = {"model": "tiny", "temperature": 0, "ignore_eos": True, "return_token_ids": True}
    return shared | {"prompt": prompt, "max_tokens": max_tokens} | more


async def complete(client: httpx.AsyncClient, prompt: list[int], max_tokens: int = 8) -> dict[str, Any]:
    answer = await client.post(COMPLETIONS, json=body(prompt, max_tokens, return_report=True))
    assert answer.status_code == 200, answer.text
    parsed: dict[str, Any] = answer.json()
    return parsed


async def assert_serves(cluster: ProcessCluster, reference: Reference, reason: str, seed: int) -> dict[str, Any]:
    prompt = random_prompt(70, seed)
    answer = await complete(cluster.http, prompt)
    assert answer["choices"][0]["token_ids"] == reference.tokens(prompt, 8)
    assert answer["diptych"]["reason"] == reason
    return answer


class Stream:
    """A streamed request, and what has come of it."""

    def __init__(self, client: httpx.AsyncClient, prompt: list[int], max_tokens: int) -> None:
        self.events: list[Any] = []
        self.task = asyncio.create_task(self._read(client, body(prompt, max_tokens, stream=True)))

    async def _read(self, client: httpx.AsyncClient, request: dict[str, Any]) -> None:
        async with client.stream("POST", COMPLETIONS, json=request) as response:
            assert response.status_code == 200, await response.aread()
            async for event in read_events(response):
                self.events.append(event)

    @property
    def tokens(self) -> list[int]:
        choices = [choice for event in self.events if "choices" in event for choice in event["choices"]]
        return [token for choice in choices for token in choice.get("token_ids", [])]

    async def has(self, num_tokens: int) -> bool:
        if self.task.done():
            self.task.result()
        return len(self.tokens) >= num_tokens


def ask(cluster: ProcessCluster, prompt: list[int], max_tokens: int, **more: Any) -> asyncio.Task[httpx.Response]:
    return asyncio.create_task(cluster.http.post(COMPLETIONS, json=body(prompt, max_tokens, **more)))


def assert_leg_failed(answer: httpx.Response) -> None:
    assert answer.status_code == 502, answer.text
    assert answer.json()["error"]["code"] == "leg_failed"
    assert answer.json()["error"]["type"] == "server_error"


def lost_with_its_connection(cluster: ProcessCluster, worker: Process) -> bool:
    """As the router says: it did not have to wait for the worker's silence."""
    assert isinstance(worker.record, WorkerRecord)
    lines = cluster.front.log.read_text().splitlines()
    lost = [line for line in lines if "worker_lost" in line and worker.record.worker_id in line]
    return bool(lost) and not any("silent" in line for line in lost)


async def until_computing(cluster: ProcessCluster, num_requests: int = 1) -> None:
    """Prefill computes, and decode has promised the blocks of `num_requests`."""
    prefill, decode = the(cluster, Role.PREFILL), the(cluster, Role.DECODE)
    promised = num_requests * LONG_PROMPT // BLOCK

    seen: tuple[int, int] = (0, 0)

    async def computing() -> bool:
        nonlocal seen
        stats, receiving = await asyncio.gather(cluster.stats(prefill), cluster.stats(decode))
        seen = stats.waiting_prefill_tokens, receiving.blocks_in_flight
        return seen[0] > 0 and seen[1] == promised

    await until(computing, lambda: f"prefill computes and {promised} blocks are promised, but {seen}")


# --- killed -------------------------------------------------------------------------------------------------------


async def test_prefill_killed_while_it_computes(cluster: ProcessCluster, reference: Reference, reap: Reap) -> None:
    """The clients notice nothing: decode computes the prompts itself."""
    prefill, decode = the(cluster, Role.PREFILL), the(cluster, Role.DECODE)
    requests = [
        ask(cluster, random_prompt(LONG_PROMPT, seed=1), 8),
        ask(cluster, random_prompt(LONG_PROMPT, seed=2), 8, stream=True),
    ]
    await until_computing(cluster, num_requests=2)
    await cluster.kill(prefill)
    async with asyncio.timeout(AGAIN_WITHIN_S):
        await asyncio.gather(*requests)
        whole, _streamed = (request.result() for request in requests)
    assert whole.json()["choices"][0]["token_ids"] == reference.tokens(random_prompt(LONG_PROMPT, seed=1), 8)
    assert all(request.result().status_code == 200 for request in requests)

    # Nobody knows yet that it is dead rather than cut off: what it may be writing to is not given to others.
    promised = 2 * LONG_PROMPT // BLOCK

    async def asked_in_vain() -> bool:
        return "revoke_failed" in decode.log.read_text()

    await until(asked_in_vain, "decode asked the dead worker to revoke")
    assert (await cluster.stats(decode)).blocks_quarantined == promised
    await assert_serves(cluster, reference, "no_prefill_worker", seed=3)
    assert (await cluster.stats(decode)).blocks_quarantined == promised

    await reap()
    await cluster.wait_quiet()

    replacement = await cluster.start_worker(Role.PREFILL)
    await cluster.wait_healthy()
    answer = await assert_serves(cluster, reference, "remote", seed=4)
    assert answer["diptych"]["prefill_worker"] == replacement.record.worker_id
    await cluster.wait_quiet()


async def test_decode_killed_in_mid_stream(cluster: ProcessCluster, reference: Reference) -> None:
    prompts = [random_prompt(100 + i, seed=10 + i) for i in range(3)]
    expected = [reference.tokens(prompt, 200) for prompt in prompts]
    stream, whole = Stream(cluster.http, prompts[0], LONG_ANSWER), ask(cluster, prompts[1], LONG_ANSWER)
    decode = the(cluster, Role.DECODE)
    async with running(GrpcCancel, cluster, prompts[2], LONG_ANSWER) as call:
        await until(lambda: stream.has(10), "the HTTP stream has ten tokens")
        await until(lambda: call.got(10), "the gRPC stream has ten tokens")
        await cluster.kill(decode)
        async with asyncio.timeout(ERROR_WITHIN_S):
            await stream.task
            assert_leg_failed(await whole)
            with pytest.raises(grpc.aio.AioRpcError) as ended:
                await call.task
    assert lost_with_its_connection(cluster, decode)
    assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
    assert DONE not in stream.events
    assert stream.events[-1]["error"]["code"] == "leg_failed"
    for tokens, right in ((stream.tokens, expected[0]), (call.tokens, expected[2])):
        length = min(len(tokens), len(right))
        assert tokens[:length] == right[:length]

    answer = await cluster.http.post(COMPLETIONS, json=body(prompts[0], 8))
    assert_no_capacity(answer)
    await cluster.wait_quiet()

    await cluster.start_worker(Role.DECODE)
    await cluster.wait_healthy()
    answer = await complete(cluster.http, prompts[0])
    assert answer["choices"][0]["token_ids"] == expected[0][:8]
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == 96  # prefill kept what it had computed
    await cluster.wait_quiet()


async def test_decode_killed_while_prefill_computes_for_it(cluster: ProcessCluster) -> None:
    prefill, decode = the(cluster, Role.PREFILL), the(cluster, Role.DECODE)
    before = (await cluster.stats(prefill)).prompt_tokens_computed_total
    request = ask(cluster, random_prompt(LONG_PROMPT, seed=20), 8)
    await until_computing(cluster)
    await cluster.kill(decode)
    async with asyncio.timeout(ERROR_WITHIN_S):
        assert_leg_failed(await request)
    assert lost_with_its_connection(cluster, decode)
    await cluster.wait_quiet()
    computed = (await cluster.stats(prefill)).prompt_tokens_computed_total - before
    assert 0 < computed < LONG_PROMPT, "prefill went on for nobody"


async def test_idle_prefill_killed(cluster: ProcessCluster, reference: Reference) -> None:
    """Decode computes the prompts itself, also for a request that comes before the death is noticed."""
    await assert_serves(cluster, reference, "remote", seed=30)
    prefill = the(cluster, Role.PREFILL)
    await cluster.kill(prefill)
    async with asyncio.timeout(ERROR_WITHIN_S):
        first = await cluster.http.post(COMPLETIONS, json=body(random_prompt(70, seed=31), 8))
    assert first.status_code == 200, first.text

    async def noticed() -> bool:
        return (await cluster.health())["details"]["prefill_workers"] == 0

    await until(noticed, "the router sees that prefill is gone", ERROR_WITHIN_S)
    assert lost_with_its_connection(cluster, prefill)
    await assert_serves(cluster, reference, "no_prefill_worker", seed=32)
    await cluster.wait_healthy()


async def test_idle_decode_killed(cluster: ProcessCluster, reference: Reference) -> None:
    """Nothing can be served: refused at once, with Retry-After, and /health says so."""
    decode = the(cluster, Role.DECODE)
    await cluster.kill(decode)
    async with asyncio.timeout(ERROR_WITHIN_S):
        first = await cluster.http.post(COMPLETIONS, json=body(random_prompt(70, seed=40), 8))
    assert first.status_code in (502, 503), first.text

    async def noticed() -> bool:
        return (await cluster.health())["details"]["decode_workers"] == 0

    await until(noticed, "the router sees that decode is gone", ERROR_WITHIN_S)
    assert lost_with_its_connection(cluster, decode)
    for more in ({}, {"stream": True}):
        async with asyncio.timeout(ERROR_WITHIN_S):
            assert_no_capacity(await cluster.http.post(COMPLETIONS, json=body(random_prompt(70, seed=41), 8, **more)))
    health = await cluster.health()
    assert health["status_code"] == 503
    assert health["reasons"]
    async with grpc.aio.insecure_channel(cluster.grpc_address, options=(("grpc.enable_http_proxy", 0),)) as channel:
        status = (await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())).status
    assert status == health_pb2.HealthCheckResponse.NOT_SERVING

    await cluster.start_worker(Role.DECODE)
    await cluster.wait_healthy()
    await assert_serves(cluster, reference, "remote", seed=42)


def assert_no_capacity(answer: httpx.Response) -> None:
    assert answer.status_code == 503, answer.text
    assert answer.json()["error"]["code"] == "no_capacity"
    assert int(answer.headers["retry-after"]) >= 1


async def test_another_decode_worker_goes_on(cluster: ProcessCluster, reference: Reference, reap: Reap) -> None:
    """Of two decode workers one is killed in mid-stream: every stream goes on, and no token is lost or comes twice."""
    await cluster.start_worker(Role.DECODE)
    await cluster.wait_healthy()
    prompts = [random_prompt(60, seed=50 + i) for i in range(6)]
    streams = [Stream(cluster.http, prompt, 400) for prompt in prompts]
    for stream in streams:
        await until(lambda stream=stream: stream.has(5), "every stream has five tokens")
    victim, survivor = cluster.of_role(Role.DECODE)
    assert (await cluster.stats(survivor)).num_running > 0
    assert (await cluster.stats(victim)).num_running > 0
    await cluster.kill(victim)
    await asyncio.gather(*(stream.task for stream in streams))
    for prompt, stream in zip(prompts, streams, strict=True):
        assert stream.events[-1] == DONE
        assert stream.tokens == reference.tokens(prompt, 400)
    await assert_serves(cluster, reference, "remote", seed=60)
    await reap()
    await cluster.wait_quiet()


async def test_router_killed_with_open_streams(cluster: ProcessCluster, reference: Reference) -> None:
    """Nobody aborts for a dead router: the workers see its frame stream end and give everything back."""
    doomed = await cluster.start_router()
    client = cluster.client(doomed)
    await cluster.wait_healthy(client)
    streams = [Stream(client, random_prompt(100, seed=70 + i), LONG_ANSWER) for i in range(3)]
    for stream in streams:
        await until(lambda stream=stream: stream.has(5), "every stream has five tokens")
    prefilling = asyncio.create_task(client.post(COMPLETIONS, json=body(random_prompt(LONG_PROMPT, seed=75), 8)))
    await until_computing(cluster)
    await cluster.kill(doomed)
    async with asyncio.timeout(ERROR_WITHIN_S):
        ends = await asyncio.gather(prefilling, *(stream.task for stream in streams), return_exceptions=True)
    assert all(isinstance(end, httpx.TransportError) for end in ends), ends
    await cluster.wait_quiet()
    await assert_serves(cluster, reference, "remote", seed=76)


async def test_terminated_decode_worker_finishes_its_streams(cluster: ProcessCluster, reference: Reference) -> None:
    """SIGTERM drains: what runs is finished, nothing new is taken, and the process ends by itself."""
    decode, prompt = the(cluster, Role.DECODE), random_prompt(100, seed=80)
    stream = Stream(cluster.http, prompt, 500)
    await until(lambda: stream.has(5), "the stream has five tokens")
    decode.signal(signal.SIGTERM)

    async def refused() -> bool:
        answer = await cluster.http.post(COMPLETIONS, json=body(random_prompt(20, seed=81), 1))
        return answer.status_code == 503

    await until(refused, "new requests are refused")
    await stream.task
    assert stream.events[-1] == DONE
    assert stream.tokens == reference.tokens(prompt, 500)
    async with asyncio.timeout(30):
        assert await decode.process.wait() == 0
    cluster.workers.remove(decode)
    await cluster.wait_quiet()


# --- stopped ------------------------------------------------------------------------------------------------------


async def test_both_workers_stopped(cluster: ProcessCluster, reference: Reference) -> None:
    """The missing heartbeats give them away. When they wake up they hold nothing for what has ended meanwhile."""
    workers = cluster.workers
    stream = Stream(cluster.http, random_prompt(100, seed=90), LONG_ANSWER)
    await until(lambda: stream.has(5), "the stream has five tokens")
    request = ask(cluster, random_prompt(LONG_PROMPT, seed=91), 8)
    await until_computing(cluster)
    for worker in workers:
        worker.signal(signal.SIGSTOP)
    try:
        async with asyncio.timeout(ERROR_WITHIN_S):
            await stream.task
            answer = await request  # lost with prefill, given to decode before that was known to be lost as well
        assert answer.json()["error"]["code"] in ("leg_failed", "internal_error")
        assert stream.events[-1]["error"]["code"] == "leg_failed"
        assert_no_capacity(await cluster.http.post(COMPLETIONS, json=body(random_prompt(20, seed=92), 8)))
    finally:
        for worker in workers:
            worker.signal(signal.SIGCONT)
    await cluster.wait_healthy()
    await cluster.wait_quiet()
    await assert_serves(cluster, reference, "remote", seed=93)


@pytest.mark.slow
@pytest.mark.parametrize("lease_ms", [1_500, 60_000])
@pytest.mark.parametrize("role", list(Role))
async def test_stopped_worker(
    model: Path, valkey_url: str, tmp_path: Path, reference: Reference, role: Role, lease_ms: int
) -> None:
    """Whether its lease ends or not: its requests end with a definite error, and the other worker does what it can."""
    lease, room = {"lease_ms": lease_ms}, {"kv_cache_bytes": 32 << 20}
    async with ProcessCluster(
        model, valkey_url, tmp_path, worker=lease | room, by_role=SLOW_PREFILL, router=lease | REMOTE_IF_POSSIBLE
    ) as cluster:
        await assert_stop_is_survived(cluster, reference, role)


async def assert_stop_is_survived(cluster: ProcessCluster, reference: Reference, role: Role) -> None:
    """Decode does prefill's work; without decode there is a definite error. Whoever wakes up holds nothing any more."""
    worker, seed = the(cluster, role), 100
    if role is Role.PREFILL:
        request = ask(cluster, random_prompt(LONG_PROMPT, seed), 8)
        await until_computing(cluster)
    else:
        stream = Stream(cluster.http, random_prompt(100, seed), LONG_ANSWER)
        await until(lambda: stream.has(5), "the stream has five tokens")
    worker.signal(signal.SIGSTOP)
    try:
        if role is Role.PREFILL:
            async with asyncio.timeout(AGAIN_WITHIN_S):
                answer = await request
            assert answer.json()["choices"][0]["token_ids"] == reference.tokens(random_prompt(LONG_PROMPT, seed), 8)
            await assert_serves(cluster, reference, "no_prefill_worker", seed + 1)
        else:
            async with asyncio.timeout(ERROR_WITHIN_S):
                await stream.task
            assert stream.events[-1]["error"]["code"] == "leg_failed"
            assert_no_capacity(await cluster.http.post(COMPLETIONS, json=body(random_prompt(20, seed + 1), 8)))
    finally:
        worker.signal(signal.SIGCONT)
    await cluster.wait_healthy()
    await cluster.wait_quiet()
    await assert_serves(cluster, reference, "remote", seed + 2)


@pytest.mark.slow
async def test_a_decode_worker_choked_by_quarantine_is_replaced(
    model: Path, valkey_url: str, tmp_path: Path, reference: Reference
) -> None:
    """Blocks that a stopped peer may still write are never reused; with too many of them the worker ends by itself, and
    what the peer writes later has no memory to go to."""
    impatient = {"quarantine_patience_s": 0.5, "drain_timeout_s": 1.0}
    async with ProcessCluster(
        model, valkey_url, tmp_path, worker=impatient, by_role=SLOW_PREFILL, router=DEEP_QUEUES
    ) as cluster:
        prefill, decode = the(cluster, Role.PREFILL), the(cluster, Role.DECODE)
        requests = [ask(cluster, random_prompt(LONG_PROMPT, seed=200 + i), 8) for i in range(2)]
        await until_computing(cluster, num_requests=2)
        prefill.signal(signal.SIGSTOP)
        try:
            async with asyncio.timeout(30):
                assert await decode.process.wait() == 0
                ends = await asyncio.gather(*requests)
        finally:
            prefill.signal(signal.SIGCONT)
        assert "quarantine_limit" in decode.log.read_text()
        assert all(end.status_code in (502, 503) for end in ends), [end.text for end in ends]
        cluster.workers.remove(decode)
        await cluster.start_worker(Role.DECODE)
        await cluster.wait_healthy()
        await cluster.wait_quiet()
        await assert_serves(cluster, reference, "remote", seed=210)
