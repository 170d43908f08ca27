"""All transfers of one worker, in both directions, over one agent; synchronous and single-threaded.

Knows nothing about threads, event loops or requests; the clock is given.
"""

from __future__ import annotations

from collections.abc import Callable

from diptych.messages import PeerHello
from kv_transfer.agent import TransferAgent
from kv_transfer.checksum import Pool
from kv_transfer.outcome import Arrival, Counters
from kv_transfer.pusher import Pusher
from kv_transfer.receiver import Receiver

WARM_UP = b"\x00"  # sent when two workers meet: the first message pays for the connection, ~50 ms
POLL_S = 0.000_5  # while something is in flight or expected: bounds what polling adds to a transfer
GRACE_S = 1.0  # polled as often after a peer was met: a connection is made by both sides' polling
IDLE_POLL_S = 0.05  # with nothing to do: lets the transport notice what its peers did


class TransferPump:
    """Turns the crank: whoever owns it calls `step`, and may sleep for `wait_s` in between."""

    def __init__(
        self,
        agent: TransferAgent,
        block_bytes: int,
        pool: Pool | None,
        on_arrival: Callable[[Arrival], None],
        clock: Callable[[], float],
    ) -> None:
        """
        Args:
            pool: this worker's blocks, [num_blocks, block_bytes]; None: checksums are neither computed nor verified.
            on_arrival: called from `step` for every delivery that was accepted.
            clock: monotonic seconds.
        """
        self.counters = Counters()
        self.pusher = Pusher(agent, block_bytes, pool, self.counters, clock)
        self.receiver = Receiver(block_bytes, pool, self.counters, on_arrival, clock)
        self._agent = agent
        self._clock = clock
        self._fast_until = 0.0

    def add_peer(self, hello: PeerHello) -> None:
        """Meet a peer and open the connection to it.

        Raises:
            TransferError: it cannot be reached.
        """
        self._agent.add_peer(hello)
        self._fast_until = self._clock() + GRACE_S
        self._agent.send_notification(hello.worker_id, WARM_UP)

    def lose_peer(self, peer_id: str) -> None:
        """The peer's process is proven dead: end its transfers and forget it. Idempotent."""
        self.pusher.lose_peer(peer_id)

    def step(self) -> bool:
        """One turn. True: something was done, and another turn may do more at once."""
        worked = self.pusher.step()
        for sender, payload in self._agent.take_notifications():
            worked = True
            if payload != WARM_UP:
                self.receiver.receive(sender, payload)
        return worked

    def wait_s(self) -> float:
        """How long the caller may sleep before the next `step`, if nothing is asked of it meanwhile."""
        active = self.pusher.active or self.receiver.active or self._clock() < self._fast_until
        return POLL_S if active else IDLE_POLL_S
