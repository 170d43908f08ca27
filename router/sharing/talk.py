"""One router's part in the log of reservations: says what it has booked, hears what others have, in step with them.

In the background it says what has changed, releases above all, SPEAK_S later at most, and listens as it does. Once
Redis has failed, what was chosen without it is owed to the others and said as soon as it is back. No call is waited for
longer than its caller asks, whatever the client library makes of it.

Knows nothing about requests.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

from diptych.membership import REDIS_ERRORS, stop_if_cancelled
from kv_transfer.hashing import HASH_BYTES
from kv_transfer.schema import KEY_BYTES
from router.sharing.breaker import Breaker
from router.sharing.load import GUESS_LASTS_S, MAX_GUESSED_BLOCKS, Guess, SharedLoad, Statement, Statements
from router.sharing.log import START, Answer, Log, reason_of

log = logging.getLogger(__name__)

WAIT_S = 0.004  # of a request for Redis, in all; timers come up to a millisecond late, so that it is 5 ms
SPEAK_S, LISTEN_S = 0.005, 0.05  # between two calls: with something to say, and without
ALONE_S, RETRY_S = 0.25, 0.1  # likewise: without anybody to hear it, and after a failure
BACKGROUND_TIMEOUT_S, GOODBYE_S = 0.25, 0.2  # the first also delays when silence is noticed
MAX_OWED = 256  # choices; of more, others hear the load, but neither the marks nor the guesses
LAST_LOOKS = 8  # turns of the loop: one that was busy finds an answer and the end of its time together
_PAD = bytes(HASH_BYTES - KEY_BYTES)


@dataclass(frozen=True, slots=True)
class Chosen:
    """What others have to know of a choice besides the load."""

    marks: tuple[str, ...]  # what it relied on (see `log`)
    guess: Guess


class Talk:
    def __init__(
        self,
        log: Log,
        statements: Statements,
        others: SharedLoad,
        believe: Callable[[Sequence[str], list[bytes], float], None],
        on_others: Callable[[int], None] = lambda count: None,
        quick_s: float = WAIT_S,
        patience_s: float = BACKGROUND_TIMEOUT_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            statements: about this router's own bookings.
            others: kept up to date.
            believe: told of others' guesses: workers, block hashes (of which KEY_BYTES are true), until when, which
                never decreases.
            on_others: told, again and again, how many other routers there are.
            quick_s: an answer that takes longer is none for a request.
            patience_s: of the background, for one call.
            clock: monotonic seconds.
        """
        self._log = log
        self._statements = statements
        self._others = others
        self._believe = believe
        self._on_others = on_others
        self._quick_s = quick_s
        self._patience_s = patience_s
        self._clock = clock
        self._breaker = Breaker(quick_s)
        self._seen = START
        self._heard_at = -inf  # what was said before that is known
        self._guesses_last_until = -inf
        self._owed: list[Chosen] = []
        self._calls: set[asyncio.Task[Answer]] = set()

    @property
    def failing(self) -> str:
        """Why a request should not ask (one of `log.REASONS`); empty: it may."""
        return self._breaker.reason

    @property
    def is_alone(self) -> bool:
        """There is no other router, as far as is known."""
        return not self._others.routers

    @property
    def age_s(self) -> float:
        """Of what is known of the others."""
        return self._clock() - self._heard_at

    # --- for requests -------------------------------------------------------------------------------------------------

    async def tell(self, chosen: Sequence[Chosen], timeout_s: float, *, compare: bool) -> bool:
        """Say that this was chosen, and what is booked now. False: another router was first, and is known now.

        Args:
            compare: whether anybody was first.

        Raises:
            RedisError, OSError, TimeoutError: see `log.reason_of`. Who knows whether it was heard. It only shows that
                Redis fails if `failing` says so as well.
        """
        began = self._clock()
        statement, marks = self._state(chosen)
        try:
            call = self._log.exchange(self._seen, statement, marks, compare=compare)
            answer = await self._within(timeout_s, call)
        except REDIS_ERRORS as error:
            self._not_answered(error, began)
            raise
        self._take(answer, began)
        if not answer.written:
            self._statements.refused(statement)
        return answer.written

    def failed(self, error: BaseException) -> None:
        """Let nobody ask until the background has had quick answers."""
        reason = reason_of(error)
        if not self.failing:
            log.warning("other routers are not asked for now, Redis: %s", reason)
        self._breaker.failed(reason)
        self._statements.unsure()

    def _not_answered(self, error: BaseException, asked_at: float) -> None:
        """That a call was given less than a request may wait, and took it all, does not show that Redis is slow."""
        if isinstance(error, TimeoutError) and self._clock() - asked_at < self._quick_s:
            self._statements.unsure()
        else:
            self.failed(error)

    def owe(self, *chosen: Chosen) -> None:
        """These stand though nobody could be asked; others are told later."""
        self._owed = [*self._owed, *chosen][-MAX_OWED:]

    # --- in the background --------------------------------------------------------------------------------------------

    async def keep_in_step(self) -> None:
        """Speak and listen until cancelled."""
        while True:
            stop_if_cancelled()
            try:
                behind = await self.exchange()
            except REDIS_ERRORS:
                behind = False
            await self._pause(behind)

    async def _pause(self, behind: bool) -> None:
        if behind or self.failing or self.is_alone:
            await asyncio.sleep(0 if behind else RETRY_S if self.failing else ALONE_S)
            return
        await asyncio.sleep(SPEAK_S)
        while not (self._owed or self._statements.is_due(self._clock()) or self.age_s >= LISTEN_S):  # noqa: ASYNC110
            await asyncio.sleep(SPEAK_S)

    async def exchange(self, timeout_s: float | None = None) -> bool:
        """Say what is to be said, if anything, and hear what is new. Whether there is more to hear.

        Raises:
            RedisError, OSError, TimeoutError: it is tried again.
        """
        began = self._clock()
        owed, self._owed = self._owed, []
        statement, marks = self._state(owed) if owed or self._statements.is_due(began) else (None, set[str]())
        try:
            call = self._log.exchange(self._seen, statement, marks, compare=False)
            answer = await self._within(timeout_s or self._patience_s, call)
            self._breaker.answered(self._clock() - began)
            self._take(answer, began)
        except REDIS_ERRORS as error:
            self._not_answered(error, began)
            self.owe(*owed)
            raise
        finally:
            self._others.expire(self._clock())
            self._on_others(len(self._others.routers))
        return answer.behind

    async def leave(self) -> None:
        """Say goodbye, so that others need not wait for the lease to end."""
        try:
            await self._within(GOODBYE_S, self._log.exchange(self._seen, self._statements.last(), (), compare=False))
        except REDIS_ERRORS as error:
            log.info("could not say goodbye: %r", error)

    # ------------------------------------------------------------------------------------------------------------------

    def _state(self, chosen: Sequence[Chosen]) -> tuple[Statement, set[str]]:
        """What is to be said with these choices, and its marks."""
        guesses, room = [], MAX_GUESSED_BLOCKS * KEY_BYTES
        for each in chosen:
            if keys := each.guess.keys[:room]:
                guesses.append(Guess(each.guess.worker_ids, keys))
                room -= len(keys)
        marks = {mark for each in chosen for mark in each.marks}
        return self._statements.next(self._clock(), guesses), marks

    def _take(self, answer: Answer, asked_at: float) -> None:
        """Believe what others say. In any order: two calls may be under way."""
        now = self._clock()
        if not answer.behind:
            self._heard_at = max(self._heard_at, asked_at)
        if answer.lost and self._seen != START:
            log.warning("Redis lost the routers' reservations; saying everything again")
            self._statements.unsure()
        if answer.lost or _numbers(answer.upto) > _numbers(self._seen):
            self._seen = answer.upto
        for heard in answer.news:
            self._others.heard(heard.router_id, heard.statement, now - heard.age_s)
            if heard.age_s < GUESS_LASTS_S:  # a log that nobody writes to is not trimmed
                until = max(self._guesses_last_until, now + GUESS_LASTS_S - heard.age_s)
                self._guesses_last_until = until
                for guess in heard.statement.guesses:
                    self._believe(guess.worker_ids, _hashes(guess.keys), until)

    async def _within(self, timeout_s: float, call: Coroutine[Any, Any, Answer]) -> Answer:
        """Wait no longer than that, even if the call does not let itself be cancelled.

        Raises:
            TimeoutError: or what the call raises.
        """
        task = asyncio.create_task(call)
        self._calls.add(task)
        task.add_done_callback(self._called)
        try:
            await asyncio.wait({task}, timeout=timeout_s)
            for _ in range(LAST_LOOKS):
                if not task.done():
                    await asyncio.sleep(0)
        finally:
            if not task.done():
                task.cancel()
        if not task.done() or task.cancelled():
            raise TimeoutError
        return task.result()

    def _called(self, task: asyncio.Task[Answer]) -> None:
        self._calls.discard(task)
        if not task.cancelled():
            task.exception()  # if nobody waits for it any more, nobody has to know


def _numbers(entry_id: bytes) -> tuple[int, int]:
    left, _, right = entry_id.partition(b"-")
    return int(left), int(right)


def _hashes(keys: bytes) -> list[bytes]:
    """Block hashes as far as they are known: an index asks for no more than their keys."""
    return [keys[start : start + KEY_BYTES] + _PAD for start in range(0, len(keys), KEY_BYTES)]
