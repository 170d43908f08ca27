import asyncio

import pytest

from diptych.errors import DeadlineExceeded, LegFailed
from diptych.messages import SamplingParams, Submission
from diptych.worker.requests import MAX_FENCED, Entry, Fence, OpenRequests


def submission(request_id: str, remaining_ms: int = 60_000, n: int = 1) -> Submission:
    sampling = SamplingParams(max_tokens=4, seed=1, n=n)
    return Submission(
        request_id=request_id, router_id="router", prompt=[1], sampling=sampling, remaining_ms=remaining_ms
    )


def ignore(_entry: Entry, _error: DeadlineExceeded) -> None:
    pass


async def test_an_id_is_used_once() -> None:
    requests = OpenRequests(ignore)
    entry = requests.open(submission("a", n=3))
    assert entry.open_choices == 3
    with pytest.raises(LegFailed):
        requests.open(submission("a"))
    assert requests.close("a") is entry
    assert requests.close("a") is None
    with pytest.raises(LegFailed):
        requests.open(submission("a"))


async def test_an_abort_that_overtakes_its_request_still_wins() -> None:
    requests = OpenRequests(ignore)
    assert requests.close("late") is None
    with pytest.raises(LegFailed):
        requests.open(submission("late"))


async def test_a_deadline_is_reported_while_the_request_is_open_and_never_after() -> None:
    expired: list[str] = []
    done = asyncio.Event()

    def on_deadline(entry: Entry, error: DeadlineExceeded) -> None:
        assert error.http_status == 504
        expired.append(entry.request_id)
        done.set()

    requests = OpenRequests(on_deadline)
    requests.open(submission("closed", remaining_ms=1))
    requests.close("closed")
    requests.open(submission("open", remaining_ms=2))
    async with asyncio.timeout(5):
        await done.wait()
    assert expired == ["open"]


async def test_waiting_for_the_last_request_to_end() -> None:
    requests = OpenRequests(ignore)
    await requests.wait_empty()
    requests.open(submission("a"))
    waiting = asyncio.create_task(requests.wait_empty())
    await asyncio.sleep(0)
    assert not waiting.done()
    requests.close("a")
    await waiting


def test_a_fence_forgets_only_the_oldest() -> None:
    fence = Fence()
    for number in range(MAX_FENCED + 1):
        fence.add(str(number))
    assert "0" not in fence
    assert "1" in fence
    assert str(MAX_FENCED) in fence
