"""One push under way: its state machine, its writes, and when things happened.

Knows nothing about agents, clocks or other pushes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from kv_transfer.outcome import Pushed
from kv_transfer.transfer import EndReason, OutgoingTransfer


@dataclass(slots=True)
class Write:
    handle: int  # the agent's
    first_index: int  # of its first block among the ticket's slots
    checksums: list[int | None]
    num_bytes: int


@dataclass(slots=True)
class Push:
    machine: OutgoingTransfer
    peer_id: str
    checked: frozenset[int]  # indices of the slots whose blocks are checksummed
    on_quiet: list[Callable[[Pushed], None]]
    writes: dict[int, Write] = field(default_factory=dict)  # by the machine's write id
    num_bytes: int = 0
    first_post_at: float | None = None
    last_done_at: float = 0.0
    last_token_at: float = 0.0
    busy_seconds: float = 0.0  # with at least one write in flight
    _busy_since: float = 0.0

    def posted(self, write_id: int, write: Write, at: float) -> None:
        if self.first_post_at is None:
            self.first_post_at = at
        if not self.writes:
            self._busy_since = at
        self.writes[write_id] = write

    def ended(self, write_id: int, at: float) -> None:
        """A write is terminal."""
        del self.writes[write_id]
        self.last_done_at = at
        if not self.writes:
            self.busy_seconds += at - self._busy_since

    def outcome(self) -> Pushed:
        seconds = max(0.0, self.last_done_at - self.first_post_at) if self.first_post_at is not None else 0.0
        return Pushed(
            self.machine.end or EndReason.ABORTED,
            self.num_bytes,
            seconds,
            self.machine.refusal,
            self.machine.settled,
        )
