"""Workers of a `World`: what a prefill and a decode process are for a transfer, without process, thread or time.

Each is an incarnation with memory, the engine's `BlockPool`, a `TransferPump` and an agent on the world's fabric. They
do what `prefill_worker.service` and `decode_worker.service` do with these parts, one event at a time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import xxhash
from transfer_peers import layout_of

from diptych.engine.block_pool import BlockPool, BlockState
from diptych.messages import Slot, Ticket
from kv_transfer.agent import BlockPair, TransferError
from kv_transfer.checksum import Pool
from kv_transfer.fake_agent import FakeAgent, Faults, _Write
from kv_transfer.incoming import IncomingEnd, IncomingTransfer
from kv_transfer.outcome import Arrival, Missed, Pushed
from kv_transfer.pump import TransferPump

if TYPE_CHECKING:
    from transfer_world import World

BLOCK_BYTES = 8
TTL_S = 5.0
WRITABLE = (BlockState.IN_FLIGHT, BlockState.QUARANTINED)


def content(transfer_id: str, index: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    """What the prompt's block must hold; no two are equal."""
    digest = xxhash.xxh3_64_digest(f"{transfer_id}/{index}".encode())
    return np.frombuffer(digest, dtype=np.uint8)


class _Aimed(tuple[int, int]):
    """A block pair that knows which generation of the target it was posted for."""

    generation: int


class _WatchedAgent(FakeAgent):
    def __init__(self, world: World, name: str, pool: Pool) -> None:
        super().__init__(name, pool, world.fabric, Faults())
        self._world = world

    def post_write(self, peer_id: str, pairs: Sequence[BlockPair], notification: bytes | None = None) -> int:
        aimed = []
        for pair in pairs:
            aimed.append(_Aimed(pair))
            if (decode := self._world.decodes.get(peer_id)) is not None:
                aimed[-1].generation = decode.pool.slots([pair[1]])[0].generation
        return super().post_write(peer_id, aimed, notification)

    def _land(self, write: _Write) -> None:
        decode = self._world.decodes.get(write.peer_id)
        if decode is not None and not write.landed:
            for pair in write.pairs:
                assert isinstance(pair, _Aimed)
                state, (slot,) = decode.pool.state(pair[1]), decode.pool.slots([pair[1]])
                assert state in WRITABLE, f"a write of {self.name} lands in a block that is {state.name}"
                assert slot.generation == pair.generation, "a write lands in a block that was handed out again"
        super()._land(write)


@dataclass
class Receive:
    """A decode worker's request whose KV has not arrived."""

    prefill_id: str
    blocks: list[int]
    slots: list[Slot]
    in_flight: bool = False


class Worker:
    def __init__(self, world: World, name: str, num_blocks: int) -> None:
        self.world = world
        self.name = name
        self.frozen = False
        self.memory: Pool = np.zeros((num_blocks, BLOCK_BYTES), dtype=np.uint8)
        self.pool = BlockPool(num_blocks)
        self.agent = _WatchedAgent(world, name, self.memory)
        self.pump = TransferPump(
            self.agent,
            BLOCK_BYTES,
            self.memory,
            self._arrived,
            lambda: world.now,
            acknowledged=True,
            on_missed=self._missed,
        )

    def meet(self, other: Worker) -> None:
        """Raises TransferError."""
        for here, there in ((self, other), (other, self)):
            here.pump.add_peer(layout_of(there.memory).hello(there.name, there.agent.metadata()))

    def check(self) -> None:
        self.pool.check()
        self.pump.check()

    def _arrived(self, arrival: Arrival) -> None:
        raise AssertionError(f"{self.name} receives nothing")

    def _missed(self, missed: Missed) -> None:
        raise AssertionError(f"{self.name} receives nothing")


class Decode(Worker):
    def __init__(self, world: World, name: str, num_blocks: int) -> None:
        super().__init__(world, name, num_blocks)
        self.shadow = self.memory.copy()  # what each block must hold, while nobody may write it
        self.receiving: dict[str, Receive] = {}
        self.quarantine: dict[str, Receive] = {}
        self.running: dict[str, list[int]] = {}
        self.num_expected = 0

    def reserve(self, prefill_id: str, count: int) -> str | None:
        """Hold blocks for a transfer; the ticket has not left."""
        blocks = self.pool.reserve(count)
        if blocks is None:
            return None
        transfer_id = self.world.new_id()
        receive = Receive(prefill_id, blocks, self.pool.slots(blocks))
        self.receiving[transfer_id] = receive
        self.num_expected += 1
        self.pump.receiver.expect(IncomingTransfer(transfer_id, self.name, prefill_id, receive.slots, num_choices=1))
        return transfer_id

    def send_ticket(self, transfer_id: str) -> None:
        receive = self.receiving[transfer_id]
        receive.in_flight = True
        self.pool.mark_in_flight(receive.blocks)
        ticket = Ticket(
            transfer_id=transfer_id,
            decode_id=self.name,
            decode_address="",
            first_block=0,
            slots=receive.slots,
            ttl_ms=int(TTL_S * 1_000),
        )
        self.world.tickets.append((receive.prefill_id, ticket))

    def cancel(self, transfer_id: str, end: IncomingEnd = IncomingEnd.FORGOTTEN) -> None:
        self.pump.receiver.forget(transfer_id, end)
        self._give_back(transfer_id)

    def use(self, count: int) -> bool:
        """Compute something here: other requests get blocks, evict, and write their own bytes."""
        blocks = self.pool.allocate(count)
        if blocks is None:
            return False
        name = self.world.new_id()
        for index, block in enumerate(blocks):
            self.memory[block] = self.shadow[block] = content(name, index)
        self._run(name, blocks)
        return True

    def reuse(self, name: str) -> bool:
        """A request with the prompt of another one takes its blocks out of the prefix cache."""
        blocks = self.pool.match(_hashes(name, len(self.memory)))
        for index, block in enumerate(blocks):
            assert (self.memory[block] == content(name, index)).all(), "the cache gave out other bytes"
        if not blocks:
            return False
        self.pool.acquire(blocks)
        self.running[f"{name}/{self.world.new_id()}"] = blocks
        return True

    def finish(self, name: str) -> None:
        self.pool.release(self.running.pop(name))

    def confirmed_quiet(self, transfer_id: str) -> None:
        if (receive := self.quarantine.pop(transfer_id, None)) is not None:
            self._settle_bytes(receive.blocks)
            self.pool.confirm_quiet(receive.blocks)

    def proven_dead(self, prefill_id: str) -> None:
        """A prefill worker's incarnation is gone."""
        self.pump.lose_peer(prefill_id)
        for transfer_id, receive in list(self.quarantine.items()):
            if receive.prefill_id == prefill_id:
                self.confirmed_quiet(transfer_id)

    def check(self) -> None:
        super().check()
        owned = [block for receive in self.receiving.values() for block in receive.blocks]
        owned += [block for receive in self.quarantine.values() for block in receive.blocks]
        assert len(set(owned)) == len(owned), "a block is promised twice"
        states = (BlockState.RESERVED, *WRITABLE)
        assert len(owned) == sum(self.pool.count(state) for state in states), "a promised block has no owner"
        for block in range(len(self.memory)):
            state = self.pool.state(block)
            if state in WRITABLE:
                self.shadow[block] = self.memory[block]
            else:
                assert (self.memory[block] == self.shadow[block]).all(), f"block {block}, {state.name}, was overwritten"

    def _arrived(self, arrival: Arrival) -> None:
        transfer_id = arrival.delivery.transfer_id
        receive = self.receiving.pop(transfer_id)
        self._settle_bytes(receive.blocks)
        self.pool.deliver(receive.blocks)
        if arrival.bad_blocks:  # the engine computes the prompt into blocks of its own
            self.world.count["arrived damaged"] += 1
            self.pool.release(receive.blocks)
            return
        for index, block in enumerate(receive.blocks):
            assert (self.memory[block] == content(transfer_id, index)).all(), "wrong bytes were accepted"
        self.world.count["arrived"] += 1
        self._run(transfer_id, receive.blocks)

    def _missed(self, missed: Missed) -> None:
        self.world.count[f"missed {missed.refusal or missed.end}"] += 1
        self._give_back(missed.transfer_id)
        if missed.writes_over:
            self.confirmed_quiet(missed.transfer_id)

    def _give_back(self, transfer_id: str) -> None:
        receive = self.receiving.pop(transfer_id)
        if receive.in_flight:
            self.pool.quarantine(receive.blocks)
            self.quarantine[transfer_id] = receive
        else:
            self.pool.cancel(receive.blocks)

    def _settle_bytes(self, blocks: list[int]) -> None:
        """From here on the world holds the blocks to what they contain now."""
        self.shadow[blocks] = self.memory[blocks]

    def _run(self, name: str, blocks: list[int]) -> None:
        """A request uses its blocks, and offers them to the prefix cache."""
        hashes = _hashes(name, len(blocks))
        for index, block in enumerate(blocks):
            before = (hashes[index - 1], blocks[index - 1]) if index else (None, None)
            self.pool.index(block, hashes[index], *before)
        self.running[name] = blocks


@dataclass
class Computing:
    ticket: Ticket
    blocks: list[int] = field(default_factory=list)  # the prompt's, as far as it is computed
    complete: bool = False


class Prefill(Worker):
    def __init__(self, world: World, name: str, num_blocks: int) -> None:
        super().__init__(world, name, num_blocks)
        self.pushes: dict[str, Computing] = {}
        self.num_pushed = 0
        self.ended: Counter[str] = Counter()

    def start(self, ticket: Ticket) -> None:
        decode = self.world.decodes.get(ticket.decode_id)
        if decode is None:
            return  # nobody answers at its address, or another incarnation
        try:
            self.meet(decode)
        except TransferError:
            return
        self.pushes[ticket.transfer_id] = Computing(ticket)
        self.num_pushed += 1
        self.pump.pusher.push(
            ticket,
            self.world.now,
            lambda pushed, name=ticket.transfer_id: self._quiet(name, pushed),  # type: ignore[misc]
        )

    def compute(self, transfer_id: str, count: int) -> None:
        """The next blocks of a prompt become final, up to `count`; with the last one the first token is drawn."""
        push = self.pushes[transfer_id]
        if push.complete:
            return
        first = len(push.blocks)
        count = min(count, len(push.ticket.slots) - first)
        blocks = self.pool.allocate(count)
        if blocks is None:
            return
        for index, block in enumerate(blocks, first):
            self.memory[block] = content(transfer_id, index)
        push.blocks += blocks
        push.complete = len(push.blocks) == len(push.ticket.slots)
        first_tokens = [7] if push.complete else []
        self.pump.pusher.ready(transfer_id, first, blocks, push.complete, first_tokens, self.world.now)

    def abort(self, transfer_id: str) -> None:
        self.pump.pusher.abort(transfer_id, lambda pushed: None)

    def revoke(self, transfer_id: str, decode: Decode) -> None:
        """Decode asks; the answer travels when nothing is in flight, and only if that is known of every byte."""

        def answer(pushed: Pushed) -> None:
            self.world.count["proven quiet" if pushed.settled else "not provable"] += 1
            if pushed.settled:
                self.world.answers.append((decode.name, transfer_id))

        self.pump.pusher.abort(transfer_id, answer)

    def _quiet(self, transfer_id: str, pushed: Pushed) -> None:
        self.ended[pushed.end] += 1
        push = self.pushes.pop(transfer_id)
        self.memory[push.blocks] = 0xEE  # whoever gets them next
        self.pool.release(push.blocks)


def _hashes(name: str, count: int) -> list[bytes]:
    return [f"{name}/{index}".encode() for index in range(count)]
