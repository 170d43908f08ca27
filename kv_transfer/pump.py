"""All transfers of one worker, in both directions, over one agent; synchronous and single-threaded.

Knows nothing about threads, event loops or requests; the clock is given.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from diptych.messages import PeerHello, Receipt, Written
from kv_transfer.agent import PeerLost, TransferAgent, TransferError
from kv_transfer.checksum import Checks, Pool
from kv_transfer.incoming import Refusal
from kv_transfer.link_probe import Link, LinkProbe
from kv_transfer.notification import WARM_UP, seal, unseal
from kv_transfer.outcome import Arrival, Counters, Missed
from kv_transfer.pusher import Pusher
from kv_transfer.receiver import Receiver

log = logging.getLogger(__name__)

POLL_S = 0.000_5  # while something is in flight or expected: bounds what polling adds to a transfer
GRACE_S = 1.0  # polled as often after a peer was met: a connection is made by both sides' polling
IDLE_POLL_S = 0.05  # with nothing to do: lets the transport notice what its peers did
SETTLE_TURNS = 64  # a turn takes in up to one segment of TCP (256 KiB); more than a socket holds (tcp_rmem, 6 MiB)


class TransferPump:
    """Turns the crank: whoever owns it calls `step`, and may sleep for `wait_s` in between."""

    def __init__(
        self,
        agent: TransferAgent,
        block_bytes: int,
        pool: Pool | None,
        on_arrival: Callable[[Arrival], None],
        clock: Callable[[], float],
        *,
        checks: Checks = Checks(),  # noqa: B008 (frozen)
        acknowledged: bool = False,
        on_missed: Callable[[Missed], None] = lambda missed: None,
        on_lost: Callable[[str], None] = lambda peer_id: None,
        on_unanswered: Callable[[str], None] = lambda peer_id: None,
        scratch_block: int | None = None,
    ) -> None:
        """
        Args:
            pool: this worker's blocks, [num_blocks, block_bytes]; None: checksums are neither computed nor verified.
            on_arrival: called from `step` for every delivery that was accepted.
            clock: monotonic seconds.
            checks: the share of blocks that is checksummed when pushing, and demanded when receiving.
            acknowledged: deliveries are answered, and sent again until they are. The same on all workers; the receiving
                one must have met the pushing one too, or its answers find no way.
            on_missed: called from `step` or `lose_peer` for every expected transfer that will not be delivered.
            on_lost: called with every peer that was forgotten, because it died or its connection broke. Before another
                push to it, it must be met again.
            on_unanswered: called with a peer that has not answered a delivery in time. It may have forgotten this
                worker, because its own connection broke: it wants to be met again as well.
            scratch_block: of the pool, that nobody owns; None: connections are not measured.
        """
        self.before_acting: Callable[[], object] = lambda: None  # between receiving and acting on it
        self.counters = Counters()
        self.pusher = Pusher(
            agent, block_bytes, pool, self.counters, clock, checks, acknowledged, self._lost, on_unanswered
        )
        self.receiver = Receiver(agent.name, block_bytes, pool, self.counters, on_arrival, on_missed, clock, checks)
        self.links: dict[str, Link] = {}  # by peer; replaced whole, so that any thread may look
        self._probes: dict[str, LinkProbe] = {}
        self._scratch_block = scratch_block
        self._block_bytes = block_bytes
        self._on_lost = on_lost
        self._agent = agent
        self._acknowledged = acknowledged
        self._clock = clock
        self._fast_until = 0.0

    def add_peer(self, hello: PeerHello, *, probe: bool = False) -> None:
        """Meet a peer and open the connection to it; with `probe`, measure it in the next steps (`links`).

        Raises:
            TransferError: it cannot be reached.
        """
        self._agent.add_peer(hello)
        self._fast_until = self._clock() + GRACE_S
        self._agent.send_notification(hello.worker_id, WARM_UP)
        if probe and self._scratch_block is not None and hello.scratch_block is not None:
            pair = self._scratch_block, hello.scratch_block
            self._probes[hello.worker_id] = LinkProbe(
                self._agent, hello.worker_id, pair, self._block_bytes, self._clock
            )

    def lose_peer(self, peer_id: str) -> None:
        """The peer's process is proven dead: end its transfers and forget it. Idempotent.

        What it had sent and this machine has received is taken in first, see `settle`.
        """
        self.settle()
        self.pusher.lose_peer(peer_id)
        self.receiver.lose_peer(peer_id)

    def settle(self) -> None:
        """Take in whatever this machine has received so far.

        Over TCP a peer's last bytes wait in a socket, though it is dead or says that it writes nothing more; they would
        be written by a later `step`, into blocks that have changed hands by then.
        """
        for _ in range(SETTLE_TURNS):
            self._take_notifications()

    def step(self) -> bool:
        """One turn. True: something was done, and another turn may do more at once."""
        worked = self.pusher.step()
        for peer_id in list(self._probes):
            worked |= self._probe(peer_id)
        return self._take_notifications() or worked

    def wait_s(self) -> float:
        """How long the caller may sleep before the next `step`, if nothing is asked of it meanwhile."""
        active = self.pusher.active or self.receiver.active or bool(self._probes) or self._clock() < self._fast_until
        return POLL_S if active else IDLE_POLL_S

    def check(self) -> None:
        """Assert the invariants."""
        self.pusher.check()
        self.receiver.check()

    def _probe(self, peer_id: str) -> bool:
        try:
            link = self._probes[peer_id].step()
        except TransferError as error:
            log.warning("the connection to %s was not measured: %s", peer_id, error)
            self._give_up_probe(peer_id)
            return True
        if link is not None:
            del self._probes[peer_id]
            self.links = self.links | {peer_id: link}
        return link is not None

    def _give_up_probe(self, peer_id: str) -> None:
        probe = self._probes.pop(peer_id, None)
        try:
            if probe is not None:
                probe.close()
        except TransferError as error:
            log.warning("the handle of a probe of %s could not be released: %s", peer_id, error)

    def _lost(self, peer_id: str) -> None:
        self._give_up_probe(peer_id)
        self.links = {peer: link for peer, link in self.links.items() if peer != peer_id}
        self._on_lost(peer_id)

    def _take_notifications(self) -> bool:
        received = self._agent.take_notifications()
        if received:
            self.before_acting()
        for sender, payload in received:
            if payload != WARM_UP:
                self._take(sender, payload)
        return bool(received)

    def _take(self, sender: str, payload: bytes) -> None:
        try:
            message = unseal(payload)
        except ValueError:
            self.counters.refused[Refusal.MALFORMED] += 1
            return
        if isinstance(message, Receipt):
            self.pusher.receipt(sender, message)
            return
        if isinstance(message, Written):
            self.receiver.verify_early(sender, message)
            return
        receipt = self.receiver.receive(sender, message)
        if receipt is not None and self._acknowledged:
            self._answer(sender, receipt)

    def _answer(self, sender: str, receipt: Receipt) -> None:
        """A receipt that is lost is not missed: the pusher sends its delivery again."""
        try:
            self._agent.send_notification(sender, seal(receipt))
        except PeerLost:  # its connection is gone, which does not prove that its process is: promises stay
            self.pusher.lose_peer(sender)
        except TransferError as error:
            log.warning("the delivery of %s cannot be acknowledged: %s", receipt.transfer_id, error)
