"""The narrow seam to whatever moves bytes: NIXL in production, a fake in tests.

One agent belongs to one worker incarnation and is called from one thread. It moves whole blocks between two registered
pools and carries small notifications. It knows nothing about requests, transfers, tickets or retries.

    TransferError     a write cannot be made, or failed; the peer may be fine
    └── PeerLost      the peer's process is gone: nothing of it will ever complete
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Protocol

from diptych.errors import LegFailed
from diptych.messages import PeerHello

BlockPair = tuple[int, int]  # (local block, remote block)


class TransferError(LegFailed):
    """A write or notification failed."""


class PeerLost(TransferError):
    """The peer's process is gone."""


class WriteState(Enum):
    IN_PROGRESS = "in progress"
    DONE = "done"  # the bytes are in the peer's memory, not merely out of ours


class TransferAgent(Protocol):
    """Moves blocks of one worker's pool into its peers' pools."""

    name: str  # the worker's id: an incarnation, never reused

    def metadata(self) -> bytes:
        """What a peer needs to reach this agent; opaque."""
        ...

    def add_peer(self, hello: PeerHello) -> None:
        """Make a peer's pool writable from here. Adding a known peer again does nothing.

        Raises:
            TransferError: the peer cannot be reached or its metadata is wrong.
        """
        ...

    def remove_peer(self, peer_id: str) -> None:
        """Forget a peer. An unknown one is not an error. Writes in flight may still land."""
        ...

    def post_write(self, peer_id: str, pairs: Sequence[BlockPair], notification: bytes | None = None) -> int:
        """Start writing blocks; returns a handle for `poll` and `release`. May block while it copies (shared memory).

        The notification, if any, reaches the peer after all of the pairs' bytes. At least one pair.

        Raises:
            PeerLost: the peer died.
            TransferError: the peer is unknown, a block is outside its pool, or the post failed. Bytes of a failed post
                may land nevertheless.
        """
        ...

    def poll(self, handle: int) -> WriteState:
        """State of a write.

        Raises:
            PeerLost: the peer died; the write is terminal.
            TransferError: the write failed; it is terminal, but bytes of it may still land.
        """
        ...

    def release(self, handle: int) -> None:
        """Give up a handle. This does not cancel: a write that is in flight may still land."""
        ...

    def send_notification(self, peer_id: str, payload: bytes) -> None:
        """Send a small message. No error does not mean that it arrived.

        Raises:
            PeerLost: the peer died.
            TransferError: the peer is unknown or the send failed.
        """
        ...

    def take_notifications(self) -> list[tuple[str, bytes]]:
        """What peers sent since the last call, as (peer id, payload). Also lets the transport make progress."""
        ...

    def close(self) -> None:
        """End the agent; afterwards nothing of it is in flight. Idempotent."""
        ...
