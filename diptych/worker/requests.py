"""The open requests of one worker: who they belong to, when they must end, and which ids may never come back.

Knows nothing about engines, KV or roles.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from diptych.errors import DeadlineExceeded, DiptychError, LegFailed
from diptych.messages import Submission, Ticket

MAX_FENCED = 65_536  # ids of ended requests and revoked transfers remembered: 10 minutes at 109 a second


@dataclass(slots=True)
class Entry:
    """One open request."""

    submission: Submission
    open_choices: int
    deadline: asyncio.TimerHandle
    error: DiptychError | None = None  # what it was ended with, for a call that is still under way
    ticket: Ticket | None = None  # set when KV moves: given out (decode) or taken in (prefill)
    phase_began: float = field(default_factory=time.time)  # unix seconds, for the span of what it is doing now

    @property
    def request_id(self) -> str:
        return self.submission.request_id

    @property
    def router_id(self) -> str:
        return self.submission.router_id

    @property
    def remaining_s(self) -> float:
        """Until the deadline. Only where the event loop runs."""
        return self.deadline.when() - asyncio.get_running_loop().time()


class Fence:
    """A bounded memory of ids that are over: what is fenced is refused for as long as it is remembered."""

    def __init__(self) -> None:
        self._ids: OrderedDict[str, None] = OrderedDict()

    def add(self, key: str) -> None:
        self._ids[key] = None
        if len(self._ids) > MAX_FENCED:
            self._ids.popitem(last=False)

    def __contains__(self, key: str) -> bool:
        return key in self._ids


class OpenRequests:
    """
    Args:
        on_deadline: called with an entry whose time is up; it is still open then.
    """

    def __init__(self, on_deadline: Callable[[Entry, DeadlineExceeded], None]) -> None:
        self._entries: dict[str, Entry] = {}
        self._ended = Fence()
        self._on_deadline = on_deadline
        self._empty = asyncio.Event()
        self._empty.set()

    def open(self, submission: Submission) -> Entry:
        """
        Raises:
            LegFailed: the id is in use or has ended: an abort may overtake the request it is for.
        """
        request_id = submission.request_id
        if request_id in self._ended or request_id in self._entries:
            raise LegFailed(f"request {request_id} has already been here; a retry needs a new id")
        timer = asyncio.get_running_loop().call_later(submission.remaining_ms / 1e3, self._expire, request_id)
        entry = Entry(submission, submission.sampling.n, timer)
        self._entries[request_id] = entry
        self._empty.clear()
        return entry

    def close(self, request_id: str) -> Entry | None:
        """Forget a request; None if it was not open. Its id is fenced either way."""
        self._ended.add(request_id)
        entry = self._entries.pop(request_id, None)
        if entry is not None:
            entry.deadline.cancel()
        if not self._entries:
            self._empty.set()
        return entry

    def get(self, request_id: str) -> Entry | None:
        return self._entries.get(request_id)

    def of_router(self, router_id: str) -> list[Entry]:
        return [entry for entry in self._entries.values() if entry.router_id == router_id]

    def all(self) -> list[Entry]:
        return list(self._entries.values())

    async def wait_empty(self) -> None:
        await self._empty.wait()

    def _expire(self, request_id: str) -> None:
        if (entry := self._entries.get(request_id)) is not None:
            self._on_deadline(entry, DeadlineExceeded("the request's deadline passed on a worker"))
