"""The two workers of one running request, and the promise that neither is left holding anything for it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from diptych.errors import DeadlineExceeded, DiptychError
from diptych.messages import Update
from router.bookings import Booking
from router.mailbox import Mailbox
from router.placement import Pair
from router.worker_link import WorkerLink

Result = TypeVar("Result")


@dataclass(slots=True)
class Legs:
    request_id: str  # of this attempt: a client may use its own id twice
    decode: WorkerLink
    prefill: WorkerLink | None  # None: decode computes the prompt itself
    mailbox: Mailbox
    booking: Booking
    decoding: bool = False  # tokens have come from decode
    refused_by: str = ""  # the worker that was asked and did not take the request

    @property
    def pair(self) -> Pair:
        return (self.prefill.record.worker_id if self.prefill else "", self.decode.record.worker_id)

    @property
    def lost(self) -> set[str]:
        """The workers whose connection is gone."""
        return {link.record.worker_id for link in (self.decode, self.prefill) if link and not link.connected}

    async def ask(self, link: WorkerLink, call: Coroutine[Any, Any, Result]) -> Result:
        """A call to one of the two, ended when the request fails meanwhile (see `Mailbox.during`).

        Raises:
            DiptychError: likewise. The worker did not take the request only if it is the call that failed.
        """
        try:
            return await self.mailbox.during(call)
        except DiptychError:
            if not self.mailbox.failed:
                self.refused_by = link.record.worker_id
            raise

    def observe(self, update: Update) -> None:
        self.booking.prefilled()
        self.decoding = self.decoding or update.position > 0

    def release(self) -> None:
        """Give everything back; idempotent.

        A worker that ended its part by itself needs no word. The others get an abort in the background, so this never
        waits. Decode has not ended by itself when the request was over with prefill's first token.
        """
        ended = self.mailbox.done
        over_with_first_token = self.prefill is not None and not self.decoding
        self.decode.leave(self.request_id, abort=not ended or over_with_first_token)
        if self.prefill is not None:
            self.prefill.leave(self.request_id, abort=not ended)
        self.booking.release()

    def expire(self) -> None:
        """The deadline has come. Also for a client that has stopped reading: it holds nothing from here on."""
        self.mailbox.fail(DeadlineExceeded("the request's deadline passed before its last token"))
        self.release()


@contextmanager
def open_legs(legs: Legs, deadline: float) -> Iterator[Legs]:
    """Route both workers' updates to the mailbox, until the block is left or the deadline (event-loop time) comes."""
    for link in filter(None, (legs.decode, legs.prefill)):
        link.join(legs.request_id, legs.mailbox)
    timer = asyncio.get_running_loop().call_at(deadline, legs.expire)
    try:
        yield legs
    finally:
        timer.cancel()
        legs.release()
