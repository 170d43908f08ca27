import asyncio

from diptych.background import background


async def test_work_runs_until_the_block_is_left() -> None:
    started, ended = asyncio.Event(), asyncio.Event()
    failures: list[BaseException] = []

    async def work() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with background(work(), "work", failures.append):
        await started.wait()
    assert ended.is_set()
    assert failures == []


async def test_whoever_needs_it_hears_at_once_that_it_failed_or_just_ended() -> None:
    failures: asyncio.Queue[BaseException] = asyncio.Queue()

    async def broken() -> None:
        raise ValueError("bad snapshot")

    async def short() -> None:
        return

    async with asyncio.timeout(5), background(broken(), "broken", failures.put_nowait):
        assert "bad snapshot" in str(await failures.get())
    async with asyncio.timeout(5), background(short(), "short", failures.put_nowait):
        assert "short ended" in str(await failures.get())
