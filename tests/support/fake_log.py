"""The routers' log in memory: what `router.sharing.log` promises, in a few lines, with faults a test asks for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from router.sharing.load import LEASE_S, Statement
from router.sharing.log import MAX_ENTRIES, MAX_NEWS, START, Answer, Heard


@dataclass(frozen=True)
class Entry:
    number: int
    router_id: str
    statement: Statement
    marks: frozenset[str]
    said_at: float


@dataclass
class FakeLogServer:
    """
    Attributes:
        error: raised by every call instead of an answer.
        held: calls wait until it is set.
        held_turns: the same for those that come with marks.
    """

    clock: Callable[[], float] = lambda: 0.0
    entries: list[Entry] = field(default_factory=list)
    error: Exception | None = None
    held: asyncio.Event | None = None
    held_turns: asyncio.Event | None = None
    num_calls: int = 0
    num_numbers: int = 0

    def flush(self) -> None:
        """All is gone; later numbers are greater, as the server's clock makes them."""
        self.entries.clear()


class FakeLog:
    def __init__(self, server: FakeLogServer, router_id: str, max_news: int = MAX_NEWS) -> None:
        self._server = server
        self._router_id = router_id
        self._max_news = max_news

    async def exchange(
        self, seen: bytes, statement: Statement | None, marks: Collection[str], *, compare: bool
    ) -> Answer:
        server = self._server
        server.num_calls += 1
        await asyncio.sleep(0)
        for held in (server.held, server.held_turns if marks else None):
            if held is not None:
                await held.wait()
        if server.error is not None:
            raise server.error
        return self._now(int(seen.partition(b"-")[0]), statement, frozenset(marks), compare)

    def _now(self, seen: int, statement: Statement | None, marks: frozenset[str], compare: bool) -> Answer:
        server, now = self._server, self._server.clock()
        top = server.entries[-1].number if server.entries else 0
        lost = top < seen
        seen = 0 if lost else seen
        read = [entry for entry in server.entries if entry.number > seen][: self._max_news]
        upto = read[-1].number if read else seen
        behind = upto < top
        theirs = [entry for entry in read if entry.router_id != self._router_id]
        clash = behind or any(marks & entry.marks for entry in theirs)
        written = statement is not None and not (compare and clash)
        if statement is not None and written:
            server.num_numbers += 1
            server.entries = [entry for entry in server.entries if entry.said_at >= now - LEASE_S]
            server.entries.append(Entry(server.num_numbers, self._router_id, statement, marks, now))
            server.entries = server.entries[-MAX_ENTRIES:]
            upto = upto if behind else server.num_numbers
        news = [Heard(entry.router_id, entry.statement, now - entry.said_at) for entry in theirs]
        return Answer(written, b"%d-0" % upto if upto else START, lost, behind, news)
