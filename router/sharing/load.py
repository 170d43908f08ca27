"""What other routers have placed and not yet seen end, by what they last said of it. Pure.

A router says what it has booked on each worker whose load has changed: the whole of it, never a difference. Now and
then it says all of it in one statement (`complete`). Statements carry rising sequence numbers. So one may be lost,
repeated or overtaken by another, and with the next complete one everybody again believes what is true.

What a router said counts until it has been silent for SILENT_S; by then the workers' own reports show the load that is
still there, and what is not there any more must not keep anybody away. After LEASE_S it is taken for dead. So nothing
can leak.

Knows no clock (times are arguments, monotonic seconds), no Redis, and no placement.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf

import msgspec

from router.bookings import Bookings, Load

LEASE_S = 3.0  # after its last word a router is there so long
SILENT_S = 1.0  # and its load counts so long
COMPLETE_EVERY_S = SILENT_S / 4  # also a router's sign of life
GUESS_LASTS_S = 5.0  # a just-placed prefix counts as cached until the worker's own event says so
MAX_GUESSED_BLOCKS = 2_048  # in one statement


class WorkerLoad(msgspec.Struct, frozen=True, array_like=True):
    """All that one router has booked on one worker."""

    worker_id: str
    tokens: int
    sequences: int
    blocks: int


class Guess(msgspec.Struct, frozen=True, array_like=True):
    """Workers that will soon hold these blocks of a prompt that was just placed on them."""

    worker_ids: tuple[str, ...]
    keys: bytes  # index keys (see `kv_transfer.schema`), joined


class Statement(msgspec.Struct, frozen=True, array_like=True):
    """What one router says of its bookings at one moment."""

    sequence: int  # rises with every statement of this router, from 1
    loads: list[WorkerLoad]
    complete: bool = False  # it has nothing on workers that are not named
    leaving: bool = False  # its last word
    guesses: list[Guess] = []


NOTHING = Load(0, 0, 0)


@dataclass(slots=True)
class _Router:
    """What is believed of one router."""

    heard_at: float
    complete: int = 0  # sequence of the last complete statement; nothing older than it counts
    loads: dict[str, tuple[int, Load]] = field(default_factory=dict)  # worker: sequence of the statement, and what


class SharedLoad:
    """The bookings of all routers but this one. Implements `bookings.Elsewhere`."""

    def __init__(self) -> None:
        self._routers: dict[str, _Router] = {}
        self._changed: set[str] = set()

    @property
    def routers(self) -> list[str]:
        """Those that are alive as far as their words go."""
        return list(self._routers)

    def load(self, worker_id: str) -> Load:
        tokens = sequences = blocks = 0
        for router in self._routers.values():
            _, load = router.loads.get(worker_id, (0, NOTHING))
            tokens, sequences, blocks = tokens + load.tokens, sequences + load.sequences, blocks + load.blocks
        return Load(tokens, sequences, blocks)

    def take_changed(self) -> set[str]:
        changed, self._changed = self._changed, set()
        return changed

    def heard(self, router_id: str, statement: Statement, said_at: float) -> None:
        """Take what another router said at that time. In any order, any number of times."""
        if statement.leaving:
            self._forget(router_id)
            return
        router = self._routers.setdefault(router_id, _Router(said_at))
        router.heard_at = max(router.heard_at, said_at)
        if statement.sequence <= router.complete:
            return
        for each in statement.loads:
            before, _ = router.loads.get(each.worker_id, (0, NOTHING))
            if statement.sequence > before:
                load = Load(each.tokens, each.sequences, each.blocks)
                router.loads[each.worker_id] = (statement.sequence, load)
                self._changed.add(each.worker_id)
        if statement.complete:
            router.complete = statement.sequence
            for worker_id in [name for name, (said, _) in router.loads.items() if said < statement.sequence]:
                del router.loads[worker_id]
                self._changed.add(worker_id)

    def expire(self, now: float) -> None:
        """Forget the load of routers that have been silent for a while, and those that seem to be dead."""
        for router_id, router in list(self._routers.items()):
            if router.heard_at + LEASE_S <= now:
                self._forget(router_id)
            elif router.heard_at + SILENT_S <= now:
                self._changed.update(router.loads)
                router.loads.clear()

    def _forget(self, router_id: str) -> None:
        if router := self._routers.pop(router_id, None):
            self._changed.update(router.loads)


class Statements:
    """What this router is to say next of its own bookings."""

    def __init__(self, bookings: Bookings) -> None:
        self._bookings = bookings
        self._changed = bookings.watch()
        self._sequence = 0
        self._complete_at = -inf  # when the next one has to be complete

    def is_due(self, now: float) -> bool:
        """There is something to say."""
        return bool(self._changed) or now >= self._complete_at

    def next(self, now: float, guesses: Sequence[Guess] = ()) -> Statement:
        """What is true now and has not been said, or all that is true."""
        complete = now >= self._complete_at
        if complete:
            self._complete_at = now + COMPLETE_EVERY_S
        worker_ids = self._bookings.workers if complete else set(self._changed)
        self._changed.clear()
        self._sequence += 1
        loads = [WorkerLoad(worker_id, *self._bookings.own(worker_id)) for worker_id in worker_ids]
        return Statement(self._sequence, loads, complete, guesses=list(guesses))

    def last(self) -> Statement:
        self._sequence += 1
        return Statement(self._sequence, [], leaving=True)

    def refused(self, statement: Statement) -> None:
        """It was certainly not heard: what it said is still to be said."""
        self._changed.update(each.worker_id for each in statement.loads)
        if statement.complete:
            self.unsure()

    def unsure(self) -> None:
        """Who knows what was heard: say everything next time."""
        self._complete_at = -inf
