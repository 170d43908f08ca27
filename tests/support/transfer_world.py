"""Prefill and decode workers whose transfers really move bytes, in whatever order the test asks for.

A frozen worker does nothing, but what it has posted may land; a dead one is gone; a new one is a new incarnation.

The world watches every byte: a write may land only where its ticket aimed, while that block is IN_FLIGHT or QUARANTINED
in the same generation; blocks in any other state must keep their bytes (`World.check`).
"""

from __future__ import annotations

from collections import Counter

from transfer_workers import TTL_S, Decode, Prefill, Worker

from diptych.engine.block_pool import BlockState
from diptych.messages import Ticket
from kv_transfer.fake_agent import Fabric, Faults


class World:
    def __init__(self) -> None:
        self.now = 0.0
        self.fabric = Fabric()
        self.decodes: dict[str, Decode] = {}  # alive
        self.prefills: dict[str, Prefill] = {}
        self.tickets: list[tuple[str, Ticket]] = []  # under way, by the prefill worker they are for
        self.answers: list[tuple[str, str]] = []  # under way: (decode, transfer) is proven quiet
        self.count: Counter[str] = Counter()
        self.everybody: list[Worker] = []  # the dead included
        self.names = 0

    def new_id(self) -> str:
        self.names += 1
        return str(self.names)

    def add_decode(self, num_blocks: int) -> Decode:
        decode = Decode(self, f"decode-{self.new_id()}", num_blocks)
        self.decodes[decode.name] = decode
        self.everybody.append(decode)
        return decode

    def add_prefill(self, num_blocks: int) -> Prefill:
        prefill = Prefill(self, f"prefill-{self.new_id()}", num_blocks)
        self.prefills[prefill.name] = prefill
        self.everybody.append(prefill)
        return prefill

    def kill(self, worker: Worker) -> None:
        self.decodes.pop(worker.name, None)
        self.prefills.pop(worker.name, None)
        worker.agent.close()

    def revoke(self, decode: Decode, transfer_id: str) -> None:
        """Decode asks for proof about quarantined blocks: the pusher gives it, or its death does."""
        prefill_id = decode.quarantine[transfer_id].prefill_id
        prefill = self.prefills.get(prefill_id)
        if prefill is None:
            decode.proven_dead(prefill_id)
        elif not prefill.frozen:
            prefill.revoke(transfer_id, decode)

    def answer(self) -> None:
        """An answer to a revocation arrives."""
        decode_id, transfer_id = self.answers.pop(0)
        if (decode := self.decodes.get(decode_id)) is not None:
            decode.confirmed_quiet(transfer_id)

    def counted(self) -> Counter[str]:
        """What all workers that ever lived counted: messages refused, pushes and promises by how they ended."""
        counted = Counter(self.count)
        for worker in self.everybody:
            counters = worker.pump.counters
            counted.update({f"refused {reason}": count for reason, count in counters.refused.items()})
            counted.update({f"out {end}": count for end, count in counters.outgoing.items()})
            counted.update({f"in {end}": count for end, count in counters.incoming.items()})
        return counted

    def check(self) -> None:
        for worker in (*self.decodes.values(), *self.prefills.values()):
            worker.check()

    def settle(self) -> None:
        """All workers thaw, every request ends, messages arrive, deadlines pass. Nothing may be left but failed writes.

        Blocks that a *failed* write was aimed at come back when its worker is gone, which is the last thing here.
        """
        for worker in (*self.decodes.values(), *self.prefills.values()):
            worker.frozen = False
            worker.agent.faults = Faults(land_after_death=worker.agent.faults.land_after_death)
        for decode in self.decodes.values():
            for transfer_id in list(decode.receiving):
                decode.cancel(transfer_id)
            for name in list(decode.running):
                decode.finish(name)
        self.tickets.clear()
        self._run_until_quiet()
        for decode in self.decodes.values():
            for transfer_id in list(decode.quarantine):
                if transfer_id in decode.quarantine:  # one proof of death is good for all
                    self.revoke(decode, transfer_id)
        self._run_until_quiet()
        for prefill in list(self.prefills.values()):
            assert not prefill.pushes, "a push never ended"
            assert prefill.pool.count(BlockState.FREE) == prefill.pool.num_blocks, "prefill leaks blocks"
            assert sum(prefill.ended.values()) == prefill.num_pushed, "a push ended without a reason, or twice"
        if any(decode.quarantine for decode in self.decodes.values()):
            assert self.count["not provable"], "blocks stay quarantined for no reason"
        for prefill in list(self.prefills.values()):
            self.kill(prefill)
            for decode in self.decodes.values():
                decode.proven_dead(prefill.name)
        self.check()
        for decode in self.decodes.values():
            assert decode.pool.num_available == decode.pool.num_blocks, "decode leaks blocks"
            assert not decode.pump.receiver.active
            assert decode.pump.counters.incoming.total() == decode.num_expected, "a promise ended without a reason"

    def _run_until_quiet(self) -> None:
        for _ in range(3):
            self.now += TTL_S
            for _ in range(8):
                for worker in (*self.prefills.values(), *self.decodes.values()):
                    while worker.pump.step():
                        self.check()
            while self.answers:
                self.answer()
        self.check()
