"""The two workers of one running request, and the promise that neither is left holding anything for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from diptych.messages import Update
from router.mailbox import Mailbox
from router.worker_link import WorkerLink


@dataclass(slots=True)
class Legs:
    request_id: str  # of this attempt: a client may use its own id twice
    decode: WorkerLink
    prefill: WorkerLink | None  # None: decode computes the prompt itself
    decoding: bool = False  # decode has taken over

    def observe(self, update: Update) -> None:
        """Once decode streams, prefill's part is over: its death no longer matters to this request."""
        if not self.decoding and update.position > 0:
            self.decoding = True
            if self.prefill is not None:
                self.prefill.leave(self.request_id, abort=False)


@contextmanager
def open_legs(request_id: str, decode: WorkerLink, prefill: WorkerLink | None, mailbox: Mailbox) -> Iterator[Legs]:
    """Route both workers' updates to `mailbox`; on the way out release whatever a worker may still hold.

    A worker that ended its part by itself needs no word. The others get an abort in the background, so leaving never
    waits; a decode worker whose request ended with prefill's first token is one of those.
    """
    legs = Legs(request_id, decode, prefill)
    for link in filter(None, (decode, prefill)):
        link.join(request_id, mailbox)
    try:
        yield legs
    finally:
        ended = mailbox.done
        decode.leave(request_id, abort=not ended or (prefill is not None and not legs.decoding))
        if prefill is not None:
            prefill.leave(request_id, abort=not ended)
