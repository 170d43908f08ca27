"""A transfer agent inside one process, with every failure of the real one behind a switch.

Agents of one `Fabric` reach each other. Bytes are really copied between the pools, at the moment the write completes,
so a write that outlives its release damages memory here exactly as it does with NIXL. Passes the same contract tests
as `NixlAgent`. For tests and for clusters simulated in one process.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from diptych.messages import PeerHello
from kv_transfer.agent import BlockPair, PeerLost, TransferError, WriteState

Pool = npt.NDArray[np.uint8]  # [num_blocks, block_bytes]


@dataclass(slots=True)
class Faults:
    """What goes wrong at one agent; may be changed while it runs."""

    refuse_handshake: bool = False
    fail_posts: bool = False
    fail_polls: bool = False
    polls_until_done: int = 0  # 0: done when posted, as shared memory is
    never_complete: bool = False
    write_after_release: bool = False  # a released write lands at the next poll of anything, as NIXL's do
    lose_notifications: bool = False
    duplicate_notifications: bool = False
    hold_notifications: bool = False  # they wait until this is False again
    flip_bit: bool = False  # the first byte of every written block arrives wrong


@dataclass(slots=True)
class Fabric:
    """The network: every live agent by name."""

    agents: dict[str, FakeAgent] = field(default_factory=dict)


@dataclass(slots=True)
class _Write:
    peer_id: str
    pairs: list[BlockPair]
    notification: bytes | None
    polls_left: int
    landed: bool = False


class FakeAgent:
    """`TransferAgent` over NumPy arrays."""

    def __init__(self, worker_id: str, pool: Pool, fabric: Fabric, faults: Faults | None = None) -> None:
        self.name = worker_id
        self.faults = faults or Faults()
        self._pool = pool
        self._fabric = fabric
        self._peers: set[str] = set()
        self._writes: dict[int, _Write] = {}
        self._zombies: list[_Write] = []  # released in flight
        self._inbox: deque[tuple[str, bytes]] = deque()
        self._next_handle = 0
        fabric.agents[worker_id] = self

    def metadata(self) -> bytes:
        return b"fake:" + self.name.encode()

    def add_peer(self, hello: PeerHello) -> None:
        if hello.worker_id in self._peers:
            return
        if self.faults.refuse_handshake or hello.agent_metadata != b"fake:" + hello.worker_id.encode():
            raise TransferError(f"peer {hello.worker_id} cannot be added")
        self._peers.add(hello.worker_id)

    def remove_peer(self, peer_id: str) -> None:
        self._peers.discard(peer_id)

    def post_write(self, peer_id: str, pairs: Sequence[BlockPair], notification: bytes | None = None) -> int:
        peer = self._reach(peer_id)
        if self.faults.fail_posts:
            raise TransferError(f"peer {peer_id} refused a write")
        if not pairs or any(not (0 <= a < len(self._pool) and 0 <= b < len(peer._pool)) for a, b in pairs):
            raise TransferError(f"a write to {peer_id} names no block or one outside a pool")
        write = _Write(peer_id, list(pairs), notification, self.faults.polls_until_done)
        self._next_handle += 1
        self._writes[self._next_handle] = write
        self._advance(write)
        return self._next_handle

    def poll(self, handle: int) -> WriteState:
        write = self._writes[handle]
        self._land_zombies()
        if not write.landed:
            self._reach(write.peer_id)
            if self.faults.fail_polls:
                raise TransferError(f"a write to {write.peer_id} failed")
            write.polls_left -= 1
            self._advance(write)
        return WriteState.DONE if write.landed else WriteState.IN_PROGRESS

    def release(self, handle: int) -> None:
        write = self._writes.pop(handle)
        if not write.landed and self.faults.write_after_release:
            self._zombies.append(write)

    def send_notification(self, peer_id: str, payload: bytes) -> None:
        peer = self._reach(peer_id)
        if not self.faults.lose_notifications:
            peer._inbox.extend([(self.name, payload)] * (2 if self.faults.duplicate_notifications else 1))

    def take_notifications(self) -> list[tuple[str, bytes]]:
        self._land_zombies()
        if self.faults.hold_notifications:
            return []
        taken = []
        while self._inbox:
            taken.append(self._inbox.popleft())
        return taken

    def close(self) -> None:
        """Also what a dead process looks like to its peers."""
        self._fabric.agents.pop(self.name, None)
        self._writes.clear()
        self._zombies.clear()

    def _reach(self, peer_id: str) -> FakeAgent:
        if peer_id not in self._peers:
            raise TransferError(f"{peer_id} is not a peer of {self.name}; they have not met")
        peer = self._fabric.agents.get(peer_id)
        if peer is None:
            raise PeerLost(f"peer {peer_id} is gone")
        return peer

    def _advance(self, write: _Write) -> None:
        if write.polls_left <= 0 and not self.faults.never_complete:
            self._land(write)

    def _land(self, write: _Write) -> None:
        peer = self._fabric.agents.get(write.peer_id)
        if peer is None:
            return
        for source, target in write.pairs:
            peer._pool[target] = self._pool[source]
            if self.faults.flip_bit:
                peer._pool[target, 0] ^= 1
        write.landed = True
        if write.notification is not None:
            self.send_notification(write.peer_id, write.notification)

    def _land_zombies(self) -> None:
        while self._zombies:
            self._land(self._zombies.pop())
