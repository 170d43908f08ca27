"""Lets the routers of a cluster place in turn, as if they were one: choose, and reserve if nobody was first.

Requests that arrive together are chosen for together, each on a view with the ones before it, and recorded by one
round trip. If another router was first in something that one of the choices relied on, nothing is recorded, the answer
says what that router did, and all are chosen again on that view: MAX_TURNS times in all, the last of which is recorded
in any case.

A request waits WAIT_S for Redis in all, whatever happens. Then its choice stands as it was made here, and others are
told in the background. After a failure nobody waits at all until the background has had quick answers. It is none that
others were first until time was up, here or elsewhere. A router that hears of no other one asks nobody.

Knows nothing about prompts and workers: a `Claim` chooses.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from diptych.membership import REDIS_ERRORS, stop_if_cancelled
from router.sharing.log import reason_of
from router.sharing.metrics import ReservationMetrics
from router.sharing.talk import WAIT_S, Chosen, Talk

FRESH_S = 0.002  # a choice is made on a view no older than that; what was placed since is compared, releases are not
MAX_TURNS = 6  # so that of six routers whose bursts begin at the same moment each is first once
MAX_BATCH = 16  # requests of one turn: choosing for them takes a millisecond or two, in which nothing else happens


class Claim(Protocol):
    """One request to be placed."""

    def choose(self) -> Chosen:
        """Choose and book on the view there is.

        Raises:
            DiptychError: there is nowhere to go.
        """
        ...

    def undo(self) -> None:
        """As if it had not been chosen. Idempotent."""
        ...


@dataclass(slots=True)
class _Waiting:
    claim: Claim
    asked_before_s: float  # for how long this router had been asking in all when it joined
    done: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    chosen: Chosen | None = None


class Reservations:
    """`reserve` is for requests, `run` does the work."""

    def __init__(
        self,
        talk: Talk,
        metrics: ReservationMetrics,
        wait_s: float = WAIT_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._talk = talk
        self._metrics = metrics
        self._wait_s = wait_s
        self._clock = clock
        self._waiting: list[_Waiting] = []
        self._woken = asyncio.Event()
        self._asked_s = 0.0  # in all calls together; one is made at a time
        self._asking_since: float | None = None

    @property
    def degraded(self) -> str:
        """Why routers do not place in turn now; empty: they do, or there is only this one."""
        return f"placed without asking other routers, Redis: {self._talk.failing}" if self._talk.failing else ""

    async def reserve(self, claim: Claim) -> None:
        """Have a claim chosen, and recorded where other routers see it, if that can be done in time.

        Raises:
            DiptychError: what `Claim.choose` raises.
        """
        if self._talk.failing:
            self._talk.owe(claim.choose())
            self._metrics.settled("skipped", 0.0)
        elif self._talk.is_alone:
            claim.choose()
            self._metrics.settled("alone", 0.0)
        else:
            waiting = _Waiting(claim, self._asked_until_now_s)
            self._waiting.append(waiting)
            self._woken.set()
            try:
                await waiting.done
            except asyncio.CancelledError:
                claim.undo()
                raise

    async def run(self) -> None:
        """Work until cancelled; then say goodbye."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._talk.keep_in_step(), name="reservations in step")
                tasks.create_task(self._take_turns(), name="reservations")
        finally:
            self._end(self._take_waiting(), "error")
            await self._talk.leave()

    async def _take_turns(self) -> None:
        while True:
            stop_if_cancelled()
            await self._woken.wait()
            if batch := self._take_waiting(MAX_BATCH):
                try:
                    await self._settle(batch)
                finally:
                    self._end(batch, "error")  # nobody waits any more, unless this is the end
            else:
                self._woken.clear()

    def _take_waiting(self, most: int | None = None) -> list[_Waiting]:
        taken = self._waiting[:most]
        del self._waiting[:most]
        return taken

    async def _settle(self, batch: list[_Waiting]) -> None:
        try:
            outcome = await self._record(batch)
        except REDIS_ERRORS as error:
            if self._talk.failing:
                self._stand(batch + self._take_waiting(), reason_of(error))
            else:  # what others left of the time was too short; who came later has more of it
                self._stand(batch, "contended")
            return
        if outcome:
            self._end(batch, outcome)
        else:
            self._stand(batch, "contended")

    async def _record(self, batch: list[_Waiting]) -> str:
        """Choose for all of them, until that is recorded. How it was; empty: others were first until time was up.

        Raises:
            RedisError, OSError, TimeoutError: it may not have been recorded; there may be no choice yet.
        """
        asked_before_s = self._asked_s
        if self._talk.age_s > FRESH_S and (left_s := self._left_s(batch)) > 0:
            with self._asking():
                await self._talk.exchange(left_s)
        for turn in range(1, MAX_TURNS + 1):
            chosen = self._choose(batch)
            if (left_s := self._left_s(batch)) <= 0:
                break
            try:
                with self._asking():
                    written = await self._talk.tell(chosen, left_s, compare=turn < MAX_TURNS)
            except TimeoutError as error:
                if turn == 1 and self._asked_s - asked_before_s >= self._wait_s:  # others had no part in it
                    self._talk.failed(error)
                raise
            if written:
                return "reserved" if turn < MAX_TURNS else "contended"
            self._metrics.refused()
            self._undo(batch)
        return ""

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """A call to Redis, which everybody who waits here waits for."""
        self._asking_since = self._clock()
        try:
            yield
        finally:
            self._asked_s = self._asked_until_now_s
            self._asking_since = None

    def _left_s(self, batch: list[_Waiting]) -> float:
        """For how long the one that has waited longest may go on; nothing if nobody waits any more."""
        return min((self._wait_s - self._waited_s(each) for each in batch if not each.done.done()), default=0.0)

    def _stand(self, batch: list[_Waiting], outcome: str) -> None:
        """Choose, if that has not been done, and let it stand though others have not been told."""
        self._talk.owe(*self._choose(batch))
        self._end(batch, outcome)

    def _choose(self, batch: list[_Waiting]) -> list[Chosen]:
        """For those that still wait and have no choice; who has nowhere to go is told so. All choices there are."""
        for each in batch:
            if each.chosen is None and not each.done.done():
                try:
                    each.chosen = each.claim.choose()
                except Exception as error:
                    each.done.set_exception(error)
        return [each.chosen for each in batch if each.chosen and not each.done.done()]

    def _undo(self, batch: list[_Waiting]) -> None:
        for each in batch:
            each.chosen = None
            if not each.done.done():
                each.claim.undo()

    def _end(self, batch: list[_Waiting], outcome: str) -> None:
        """What was chosen for those that still wait stands."""
        self._choose(batch)
        for each in batch:
            if not each.done.done():
                self._metrics.settled(outcome, self._waited_s(each))
                each.done.set_result(None)

    def _waited_s(self, waiting: _Waiting) -> float:
        """For Redis: its own calls and those it had to let pass. Choosing does not count."""
        return self._asked_until_now_s - waiting.asked_before_s

    @property
    def _asked_until_now_s(self) -> float:
        return self._asked_s + (0.0 if self._asking_since is None else self._clock() - self._asking_since)
