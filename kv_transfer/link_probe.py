"""Measures the connection to one peer when two workers meet: it warms it up, then learns its latency and its speed.

Blocks are written into the peer's scratch block, which nobody owns: once to make the connection, then one block, then
several at a time. What the second and third cost gives latency and bytes a second. About 20 ms over shared memory.

Knows nothing about threads or transfers; the clock is given.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kv_transfer.agent import BlockPair, TransferAgent, WriteState

MAX_PROBE_BYTES = 16 << 20  # of the largest write


@dataclass(frozen=True, slots=True)
class Link:
    """One pair's connection, as its pushing side measured it."""

    bytes_per_s: float
    latency_ms: float  # of a write beyond what its bytes take


class LinkProbe:
    """Ask `step` until it returns a `Link`; `close` it if it is given up before."""

    def __init__(
        self, agent: TransferAgent, peer_id: str, pair: BlockPair, block_bytes: int, clock: Callable[[], float]
    ) -> None:
        """
        Args:
            pair: scratch blocks, here and there.
        """
        self._agent = agent
        self._peer_id = peer_id
        self._pair = pair
        self._block_bytes = block_bytes
        self._clock = clock
        self._counts = [1, 1, max(2, min(16, MAX_PROBE_BYTES // block_bytes))]  # blocks of each write
        self._seconds: list[float] = []
        self._handle: int | None = None
        self._began = 0.0

    def step(self) -> Link | None:
        """Do what can be done at once.

        Raises:
            TransferError: a write failed; there is nothing more to ask.
        """
        if self._handle is None:
            self._began = self._clock()
            self._handle = self._agent.post_write(self._peer_id, [self._pair] * self._counts[len(self._seconds)])
        if self._agent.poll(self._handle) is WriteState.IN_PROGRESS:
            return None
        self._seconds.append(self._clock() - self._began)
        self.close()
        return self._link() if len(self._seconds) == len(self._counts) else None

    def close(self) -> None:
        """Give up the write that is under way, if any. What still lands has the scratch block to land in.

        Raises:
            TransferError: the agent keeps its handle.
        """
        if self._handle is not None:
            handle, self._handle = self._handle, None
            self._agent.release(handle)

    def _link(self) -> Link:
        _, one_s, many_s = self._seconds
        more_bytes = (self._counts[2] - self._counts[1]) * self._block_bytes
        # On a busy machine the small write may have taken longer than the large one: then the large one says it all.
        seconds = many_s - one_s if many_s > one_s else many_s
        bytes_per_s = more_bytes / max(seconds, 1e-9)
        return Link(bytes_per_s, max(0.0, one_s - self._block_bytes / bytes_per_s) * 1e3)
