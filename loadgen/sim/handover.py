"""One prompt's KV on its way from a prefill to a decode worker: the real state machines of both sides, modelled wires.

A write takes latency + bytes / bandwidth, and a worker's wire carries one write at a time in each direction. Blocks are
written while later chunks still compute. In simulations with content the bytes are copied when a write lands, and the
checksums are real.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from diptych.engine.interface import ReadyBlocks, Reservation
from diptych.messages import Delivery, Slot
from kv_transfer.checksum import checksums
from kv_transfer.incoming import IncomingTransfer, Refusal
from kv_transfer.transfer import EndReason, Notify, OutgoingTransfer, Post
from loadgen.sim.event_loop import NS_PER_S, EventLoop, Order
from loadgen.sim.worker import SimWorker

NO_DEADLINE = float("inf")


@dataclass(slots=True)
class Wires:
    """Every worker's way out and way in."""

    loop: EventLoop
    bytes_per_s: float
    latency_ns: int
    block_bytes: int
    busy_until_ns: dict[tuple[int, bool], int] = field(default_factory=dict)  # (worker, outwards)
    num_bytes: int = 0

    def write(self, source: int, destination: int, num_blocks: int, landed: Callable[[], None]) -> None:
        """Call `landed` when so many blocks have arrived."""
        ways = ((source, True), (destination, False))
        start = max(self.loop.now_ns, *(self.busy_until_ns.get(way, 0) for way in ways))
        end = start + round(num_blocks * self.block_bytes / self.bytes_per_s * NS_PER_S)
        self.busy_until_ns.update(dict.fromkeys(ways, end))
        self.num_bytes += num_blocks * self.block_bytes
        self.loop.at(end + self.latency_ns, Order.INPUT, landed)


class Handover:
    """One transfer, from the ticket to the delivery."""

    def __init__(
        self,
        wires: Wires,
        prefill: SimWorker,
        decode: SimWorker,
        reservation: Reservation,
        delivered: Callable[[Sequence[int]], None],
    ) -> None:
        """
        Args:
            delivered: called with the first tokens when decode has accepted the delivery.
        """
        self._wires = wires
        self._prefill = prefill
        self._decode = decode
        self._request_id = reservation.request_id
        self._slots: list[Slot] = reservation.slots
        self._delivered = delivered
        self._out = OutgoingTransfer(
            self._request_id, self._slots, reservation.first_block, NO_DEADLINE, acknowledged=True
        )
        self._in = IncomingTransfer(self._request_id, decode.worker_id, prefill.worker_id, self._slots, num_choices=1)

    def ready(self, ready: ReadyBlocks) -> None:
        """Blocks of the prompt are final."""
        self._out.ready(ready.first_index, ready.blocks, ready.last, ready.first_tokens)
        self._advance()

    def cancel(self) -> None:
        """Nobody wants the KV any more: give up both sides as soon as no write is in flight."""
        self._out.abort()
        self._decode.abort(self._request_id)
        self._end_if_quiet()

    def _end_if_quiet(self) -> None:
        if self._out.end is EndReason.ABORTED and self._out.quiet:
            self._prefill.release(self._request_id)
            self._decode.confirm_quiet(self._request_id)

    def _advance(self) -> None:
        while (instruction := self._out.advance(self._now_s())) is not None:
            if isinstance(instruction, Post):
                self._post(instruction)
            else:
                self._notify(instruction)
        if self._out.end is EndReason.BROKEN:
            raise RuntimeError(f"request {self._request_id}: the engine's blocks do not fit the ticket")

    def _post(self, post: Post) -> None:
        self._wires.write(self._prefill.index, self._decode.index, len(post.pairs), lambda: self._landed(post))

    def _landed(self, post: Post) -> None:
        sources = [source for source, _ in post.pairs]
        if self._prefill.runner and self._decode.runner:
            self._decode.runner.pool[[target for _, target in post.pairs]] = self._prefill.runner.pool[sources]
        self._out.write_done(post.write_id, _checksums(self._prefill, sources))
        self._advance()
        self._end_if_quiet()

    def _notify(self, notify: Notify) -> None:
        delivery = Delivery(
            transfer_id=self._request_id,
            decode_id=self._decode.worker_id,
            prefill_id=self._prefill.worker_id,
            slots=list(notify.slots),
            checksums=list(notify.checksums),
            first_tokens=list(notify.first_tokens),
            first_post_ms=0.0,
            last_token_ms=0.0,
        )
        self._out.notified(self._now_s())
        self._wires.loop.after(self._wires.latency_ns, lambda: self._receive(delivery))

    def _receive(self, delivery: Delivery) -> None:
        refusal = self._in.accept(delivery, self._prefill.worker_id)
        if refusal is None and _checksums(self._decode, [slot.block for slot in self._slots]) != delivery.checksums:
            self._in.damaged()
            refusal = Refusal.DAMAGED
        if refusal is not None:  # nothing here damages or mixes up transfers
            raise RuntimeError(f"request {self._request_id}: the delivery is refused: {refusal}")
        self._wires.loop.after(self._wires.latency_ns, self._receipt)
        self._delivered(delivery.first_tokens)
        self._decode.deliver(self._request_id, delivery.first_tokens)

    def _receipt(self) -> None:
        self._out.receipt(None)
        self._prefill.release(self._request_id)

    def _now_s(self) -> float:
        return self._wires.loop.now_ns / NS_PER_S


def _checksums(worker: SimWorker, blocks: Sequence[int]) -> list[int | None]:
    """Of a worker's blocks; none where there is no content."""
    return [*checksums(worker.runner.pool, blocks)] if worker.runner else [None] * len(blocks)
