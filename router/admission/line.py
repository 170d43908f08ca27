"""Those that wait, in order: by tenant, then by rank.

    tenant A   rank ─ rank ─ rank …     served 420 ms
    tenant B   rank                     served 400 ms   ◄ next, unless A's first has a higher priority

Within a tenant, priority is a rank that ages, as in the engine's scheduler (decision 021; `diptych.engine.sequence`):
one number that never changes, so two requests never change places and nothing is sorted again. Between tenants the one
that has been given the least work is next (start-time fair queueing: Goyal, Vin and Cheng, SIGCOMM 1996), and a point
of priority counts as so much work. Knows no clock and nothing about workers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from heapq import heapify, heappop, heappush
from math import inf
from typing import NamedTuple

from router.admission.ask import Ask

POINT_MS = 10_000.0  # of waiting, that a point of priority is worth
PATIENT_MS = POINT_MS  # who wants its first token later than this, or any time, ranks like this


class Load(NamedTuple):
    """Work that waits."""

    tokens: int  # of prompts
    requests: int


class Stage(Enum):
    QUEUED = "queued"
    GRANTED = "granted"  # may be placed, and has not been yet
    PLACED = "placed"  # its prompt is being computed
    STREAMING = "streaming"
    OVER = "over"


class Rank(NamedTuple):
    """Who goes first within a tenant; smaller is better.

    `start_ms` is when its first token is wanted, at the latest PATIENT_MS after it came, less POINT_MS for each point
    of priority. So of two that came together the one of higher priority goes first whatever their limits, of equal ones
    the one that is due earlier; and one is overtaken only by those that come within POINT_MS x (the difference in
    priority) + PATIENT_MS after it.
    """

    start_ms: float
    arrival: int


@dataclass(slots=True, eq=False)
class Entry:
    """One request from arrival to its end."""

    ask: Ask
    arrived_ms: float
    arrival: int  # rises
    stage: Stage = Stage.OVER
    decode_id: str = ""
    first_token_ms: float = 0.0
    rank: Rank = field(init=False)

    def __post_init__(self) -> None:
        ask = self.ask
        patience_ms = min(ask.ttft_limit_ms, ask.deadline_ms - self.arrived_ms, PATIENT_MS)
        self.rank = Rank(self.arrived_ms + patience_ms - POINT_MS * ask.priority, self.arrival)

    @property
    def due_ms(self) -> float:
        """From then on it is of no use that it waits."""
        return min(self.ask.deadline_ms, self.arrived_ms + self.ask.ttft_limit_ms)


class _Heap:
    """Entries by some key, smallest first; forgets lazily those that have left (as `diptych.engine.ranked_queue`)."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Entry]] = []

    def add(self, key: float, entry: Entry, num_members: int) -> None:
        if len(self._heap) > 2 * num_members + 64:  # mostly those that left
            self._heap = [item for item in self._heap if item[2].stage is Stage.QUEUED]
            heapify(self._heap)
        heappush(self._heap, (key, entry.arrival, entry))

    def first(self) -> Entry | None:
        while self._heap:
            if self._heap[0][2].stage is Stage.QUEUED:
                return self._heap[0][2]
            heappop(self._heap)
        return None


class _Lane:
    """What one tenant waits for."""

    def __init__(self, served_ms: float) -> None:
        self.served_ms = served_ms
        self.members: dict[int, Entry] = {}
        self.heap = _Heap()


class Line:
    """Every member's stage is QUEUED. O(log n) to add, amortised O(log n + tenants) to look at the first."""

    def __init__(self) -> None:
        self._lanes: dict[str, _Lane] = {}  # of tenants that wait for something
        self._due = _Heap()
        self._by_size = _Heap()
        self.num_entries = 0
        self.num_tokens = 0

    def __len__(self) -> int:
        return self.num_entries

    def __iter__(self) -> Iterator[Entry]:
        for lane in self._lanes.values():
            yield from lane.members.values()

    def add(self, entry: Entry) -> None:
        lane = self._lanes.get(entry.ask.tenant)
        if lane is None:  # idle tenants save nothing up
            served = min((other.served_ms for other in self._lanes.values()), default=0.0)
            lane = self._lanes[entry.ask.tenant] = _Lane(served)
        entry.stage = Stage.QUEUED
        lane.members[entry.arrival] = entry
        lane.heap.add(entry.rank.start_ms, entry, len(lane.members))
        self.num_entries += 1
        self.num_tokens += entry.ask.num_tokens
        self._by_size.add(entry.ask.num_tokens, entry, self.num_entries)
        if entry.due_ms < inf:
            self._due.add(entry.due_ms, entry, self.num_entries)

    def remove(self, entry: Entry, stage: Stage) -> None:
        """A member leaves for another stage."""
        lane = self._lanes[entry.ask.tenant]
        del lane.members[entry.arrival]
        entry.stage = stage
        self.num_entries -= 1
        self.num_tokens -= entry.ask.num_tokens
        if not lane.members:
            del self._lanes[entry.ask.tenant]

    def serve(self, entry: Entry, work_ms: float) -> None:
        """The same, because it is let through; its tenant has been given so much."""
        self._lanes[entry.ask.tenant].served_ms += work_ms
        self.remove(entry, Stage.GRANTED)

    @property
    def load(self) -> Load:
        return Load(self.num_tokens, self.num_entries)

    def first(self) -> Entry | None:
        """Who is next."""
        best, best_key = None, (inf, inf, inf)
        for lane in self._lanes.values():
            entry = lane.heap.first()
            assert entry is not None
            key = (lane.served_ms - POINT_MS * entry.ask.priority, *entry.rank)
            if key < best_key:
                best, best_key = entry, key
        return best

    def shortest(self) -> Entry | None:
        """The one with the fewest tokens to compute; of equals the one that came first."""
        return self._by_size.first()

    def first_due(self) -> Entry | None:
        """Whose limit passes first."""
        return self._due.first()

    def ahead_of(self, entry: Entry) -> Load:
        """What goes before this one, which may be a member or not, if nobody else comes.

        Another tenant gets as much as its own does.
        """
        own = self._lanes.get(entry.ask.tenant)
        before = [other.ask.num_tokens for other in own.members.values() if other.rank < entry.rank] if own else []
        tokens, requests = sum(before), len(before)
        share = tokens + entry.ask.num_tokens
        for lane in self._lanes.values():
            if lane is not own:
                theirs = sum([other.ask.num_tokens for other in lane.members.values()])
                part = min(1.0, share / theirs)
                tokens, requests = tokens + int(part * theirs), requests + int(part * len(lane.members))
        return Load(tokens, requests)

    def to_shed(self, newcomer: Entry) -> Entry | None:
        """The member of lower priority and worse rank than the newcomer that is the worst of these; None: nobody."""
        lower = [entry for entry in self if entry.ask.priority < newcomer.ask.priority and entry.rank > newcomer.rank]
        return max(lower, key=lambda entry: entry.rank, default=None)

    def check(self) -> None:
        """Raises AssertionError where the books do not add up."""
        entries = list(self)
        assert len(entries) == self.num_entries
        assert sum(entry.ask.num_tokens for entry in entries) == self.num_tokens
        assert all(entry.stage is Stage.QUEUED for entry in entries)
        assert all(lane.members for lane in self._lanes.values())
