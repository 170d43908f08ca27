"""A transfer agent inside one process, with every failure of the real one behind a switch.

Agents of one `Fabric` reach each other. Bytes are really copied between the pools, at the moment they land, so a write
that outlives its release, its failure or its agent damages memory here exactly as it does with NIXL. Passes the same
contract tests as `NixlAgent`. For tests and for clusters simulated in one process.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
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
    land_after_failure: bool = False  # a failed post or write lands nevertheless, like a released one
    polls_until_done: int = 0  # 0: done when posted, as shared memory is
    never_complete: bool = False  # until this is False again; released writes wait as well
    write_after_release: bool = False  # a released write lands at the next poll of anything, as NIXL's do
    land_after_death: bool = False  # writes in flight at `close` land when their targets poll next, as over TCP
    lose_notifications: bool = False
    duplicate_notifications: bool = False
    hold_notifications: bool = False  # those that came here wait until this is False again
    flip_bit: bool = False  # the first byte of every written block arrives wrong
    alter_write: Callable[[Pool, Sequence[BlockPair]], None] | None = None  # does worse to the target's pool
    alter_notification: Callable[[bytes], Sequence[bytes]] | None = None  # what is sent in its place


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
    landed: bool = False  # the bytes are there
    done: bool = False  # and that is known here


class FakeAgent:
    """`TransferAgent` over NumPy arrays."""

    def __init__(self, worker_id: str, pool: Pool, fabric: Fabric, faults: Faults | None = None) -> None:
        self.name = worker_id
        self.faults = faults or Faults()
        self._pool = pool
        self._fabric = fabric
        self._peers: set[str] = set()
        self._writes: dict[int, _Write] = {}
        self._zombies: list[_Write] = []  # nobody holds their handles, and they will land
        self._socket: list[Callable[[], None]] = []  # received, not taken in: what dead agents had sent
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
        if not pairs or any(not (0 <= a < len(self._pool) and 0 <= b < len(peer._pool)) for a, b in pairs):
            raise TransferError(f"a write to {peer_id} names no block or one outside a pool")
        write = _Write(peer_id, list(pairs), notification, self.faults.polls_until_done)
        if self.faults.fail_posts:
            self._fail(write)
            raise TransferError(f"peer {peer_id} refused a write")
        self._next_handle += 1
        self._writes[self._next_handle] = write
        self._advance(write)
        return self._next_handle

    def poll(self, handle: int) -> WriteState:
        write = self._writes[handle]
        self._land_zombies()
        if not write.done:
            self._reach(write.peer_id)
            if self.faults.fail_polls:
                self._fail(write)
                raise TransferError(f"a write to {write.peer_id} failed")
            write.polls_left -= 1
            self._advance(write)
        return WriteState.DONE if write.done else WriteState.IN_PROGRESS

    def release(self, handle: int) -> None:
        write = self._writes.pop(handle)
        if self.faults.write_after_release and not write.landed:
            self._zombies.append(write)

    def send_notification(self, peer_id: str, payload: bytes) -> None:
        self._send(self._reach(peer_id), payload)

    def take_notifications(self) -> list[tuple[str, bytes]]:
        self._land_zombies()
        while self._socket:
            self._socket.pop(0)()
        taken: list[tuple[str, bytes]] = []
        while self._inbox and not self.faults.hold_notifications:
            taken.append(self._inbox.popleft())
        return taken

    def land_in_flight(self) -> None:
        """The bytes of everything in flight land now. Nobody has to poll for that: this process may be stopped."""
        for write in (*self._writes.values(), *self._zombies):
            self._land(write)

    def close(self) -> None:
        """Also what a dead process looks like to its peers."""
        self._fabric.agents.pop(self.name, None)
        for write in (*self._writes.values(), *self._zombies):
            target = self._fabric.agents.get(write.peer_id)
            if self.faults.land_after_death and target is not None and not write.landed:
                target._socket.append(lambda write=write: self._land(write))  # type: ignore[misc]
        self._writes.clear()
        self._zombies.clear()

    def _reach(self, peer_id: str) -> FakeAgent:
        if peer_id not in self._peers:
            raise TransferError(f"{peer_id} is not a peer of {self.name}; they have not met")
        peer = self._fabric.agents.get(peer_id)
        if peer is None:
            raise PeerLost(f"peer {peer_id} is gone")
        return peer

    def _send(self, peer: FakeAgent, payload: bytes) -> None:
        payloads = [payload] if self.faults.alter_notification is None else self.faults.alter_notification(payload)
        if not self.faults.lose_notifications:
            copies = 2 if self.faults.duplicate_notifications else 1
            peer._inbox.extend((self.name, each) for each in payloads for _ in range(copies))

    def _fail(self, write: _Write) -> None:
        """The write is reported as failed. What became of its bytes is another question."""
        if self.faults.land_after_failure and not write.landed:
            self._zombies.append(write)
        else:
            write.landed = True  # nothing of it will land

    def _advance(self, write: _Write) -> None:
        if write.polls_left <= 0 and not self.faults.never_complete:
            self._land(write)
            write.done = write.landed
            peer = self._fabric.agents.get(write.peer_id)
            if write.done and write.notification is not None and peer is not None:
                self._send(peer, write.notification)

    def _land(self, write: _Write) -> None:
        peer = self._fabric.agents.get(write.peer_id)
        if peer is None or write.landed:
            return
        for source, target in write.pairs:
            peer._pool[target] = self._pool[source]
            if self.faults.flip_bit:
                peer._pool[target, 0] ^= 1
        if self.faults.alter_write is not None:
            self.faults.alter_write(peer._pool, write.pairs)
        write.landed = True

    def _land_zombies(self) -> None:
        while self._zombies and not self.faults.never_complete:
            self._land(self._zombies.pop())
