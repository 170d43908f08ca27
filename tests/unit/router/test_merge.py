from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from router.merge import merge


class Source:
    def __init__(self, items: list[int], *, fails: bool = False, endless: bool = False) -> None:
        self._items, self._fails, self._endless = items, fails, endless
        self.waiting = asyncio.Event()
        self.closed = False

    async def run(self) -> AsyncGenerator[int, None]:
        try:
            for item in self._items:
                yield item
            if self._fails:
                raise ValueError("broken")
            if self._endless:
                self.waiting.set()
                await asyncio.Event().wait()
        finally:
            self.closed = True


async def test_all_items_of_all_sources_in_each_ones_order() -> None:
    sources = [Source(list(range(i, 1_000, 3))) for i in range(3)]
    items = [item async for item in merge([source.run() for source in sources])]
    assert sorted(items) == list(range(1_000))
    assert [item for item in items if item % 3 == 1] == list(range(1, 1_000, 3))


async def test_a_failure_closes_the_others() -> None:
    failing, endless = Source([1], fails=True), Source([2], endless=True)
    with pytest.raises(ValueError, match="broken"):
        _ = [item async for item in merge([endless.run(), failing.run()])]
    assert endless.closed


async def test_closing_closes_all_also_while_they_wait() -> None:
    sources = [Source([i], endless=True) for i in range(3)]
    merged = merge([source.run() for source in sources])
    await anext(merged)
    for source in sources:
        await source.waiting.wait()
    await merged.aclose()
    assert all(source.closed for source in sources)
