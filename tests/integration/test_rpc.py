"""The internal service over a real gRPC connection."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from diptych import messages as m
from diptych import rpc
from diptych.errors import DeadlineExceeded, InternalError, LegFailed, NoCapacity, PromptTooLong


class Echo:
    """Answers with what it was asked, or raises what it is told to."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.started, self.cancelled = asyncio.Event(), asyncio.Event()

    async def reserve(self, request: m.Reserve) -> m.Ticket:
        self.started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        raise AssertionError

    async def start(self, request: m.Start) -> m.Started:
        if self.error:
            raise self.error
        return m.Started(request.submission.request_id)

    async def abort(self, request: m.Abort) -> m.Aborted:
        return m.Aborted(known=False)

    async def revoke(self, request: m.Revoke) -> m.Revoked:
        return m.Revoked(request.transfer_id)

    async def meet(self, request: m.PeerHello) -> m.PeerHello:
        return request

    async def frames(self, request: m.Subscribe) -> AsyncIterator[m.Frame]:
        for number in range(3):
            yield m.Frame("worker", number, [m.Update("r", 0, number, [number], m.FinishReason.STOP)])
        if self.error:
            raise self.error


def submission() -> m.Submission:
    sampling = m.SamplingParams(max_tokens=3, seed=1, logit_bias={5: -1.5}, stop_token_ids=(1, 2))
    return m.Submission(request_id="r", router_id="router", prompt=list(range(70_000)), sampling=sampling)


@pytest.fixture
async def echo() -> Echo:
    return Echo()


@pytest.fixture
async def stub(echo: Echo) -> AsyncIterator[rpc.WorkerStub]:
    server = rpc.make_server()
    rpc.add_to_server(echo, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    stub = rpc.WorkerStub(f"127.0.0.1:{port}")
    yield stub
    await stub.close()
    await server.stop(None)


async def test_messages_arrive_as_they_were_sent(stub: rpc.WorkerStub) -> None:
    assert (await stub.call(rpc.START, m.Start(submission=submission()), 5)).worker_id == "r"
    blob = bytes(range(256))
    hello = m.PeerHello(
        worker_id="w", fingerprint="f", agent_metadata=blob, pool_address=2**47, block_bytes=1, num_blocks=2
    )
    assert await stub.call(rpc.MEET, hello, 5) == hello
    frames = [frame async for frame in stub.stream(rpc.FRAMES, m.Subscribe("router"))]
    assert [frame.updates[0].token_ids for frame in frames] == [[0], [1], [2]]
    assert frames[0].updates[0].finish_reason is m.FinishReason.STOP


@pytest.mark.parametrize("error", [PromptTooLong("9 > 8", param="prompt"), NoCapacity("full", retry_after_s=2.5)])
async def test_our_errors_keep_their_class_and_fields(stub: rpc.WorkerStub, echo: Echo, error: Exception) -> None:
    echo.error = error
    with pytest.raises(type(error)) as caught:
        await stub.call(rpc.START, m.Start(submission=submission()), 5)
    assert vars(caught.value) == vars(error)
    with pytest.raises(type(error)):
        async for _ in stub.stream(rpc.FRAMES, m.Subscribe("router")):
            pass


async def test_a_bug_in_a_worker_says_nothing_of_its_insides(stub: rpc.WorkerStub, echo: Echo) -> None:
    echo.error = RuntimeError("secret prompt text")
    with pytest.raises(InternalError) as caught:
        await stub.call(rpc.START, m.Start(submission=submission()), 5)
    assert "secret" not in caught.value.message


async def test_a_timeout_cancels_the_call_on_the_worker(stub: rpc.WorkerStub, echo: Echo) -> None:
    reserve = m.Reserve(submission=submission(), prefill_id="p", prefill_address="x")
    with pytest.raises(DeadlineExceeded):
        await stub.call(rpc.RESERVE, reserve, 0.05)
    async with asyncio.timeout(5):
        await echo.cancelled.wait()


async def test_an_unreachable_worker_is_a_failed_leg() -> None:
    stub = rpc.WorkerStub("127.0.0.1:1")
    with pytest.raises(LegFailed):
        await stub.call(rpc.ABORT, m.Abort("r"), 5)
    await stub.close()


async def test_closing_the_connection_fails_the_leg_and_cancels_nobody(stub: rpc.WorkerStub, echo: Echo) -> None:
    reserve = m.Reserve(submission=submission(), prefill_id="p", prefill_address="x")
    waiting = asyncio.create_task(stub.call(rpc.RESERVE, reserve, 60))
    async with asyncio.timeout(5):
        await echo.started.wait()
        await stub.close()
        with pytest.raises(LegFailed):
            await waiting
        with pytest.raises(LegFailed):  # nor does a call that comes too late raise what nobody expects
            await stub.call(rpc.ABORT, m.Abort("r"), 5)


async def test_a_caller_that_is_cancelled_stays_cancelled(stub: rpc.WorkerStub, echo: Echo) -> None:
    reserve = m.Reserve(submission=submission(), prefill_id="p", prefill_address="x")
    waiting = asyncio.create_task(stub.call(rpc.RESERVE, reserve, 60))
    async with asyncio.timeout(5):
        await echo.started.wait()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await echo.cancelled.wait()
