"""The corruption campaign: thousands of transfers under churn, half of them spoiled on purpose.

`campaign(seed, num)` injects `num` corruptions of every kind in `sabotage` and makes as many clean transfers beside
them, over the fake agent or a real one. Blocks are handed out and taken back by the engine's `BlockPool`, so every
transfer writes over the leavings of others; some are cancelled half-way. `python tests/support/corruption.py` prints
the result as JSON.

Wrong bytes that were taken for right ones raise AssertionError: that is not a count.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

import cyclopts
import numpy as np
from sabotage import SABOTAGES, Job, Outcome, Saboteur
from transfer_peers import layout_of

from diptych.engine.block_pool import BlockPool
from diptych.messages import Slot, Ticket
from kv_transfer.agent import TransferAgent
from kv_transfer.checksum import Pool
from kv_transfer.fake_agent import Fabric, FakeAgent
from kv_transfer.incoming import IncomingTransfer
from kv_transfer.outcome import Arrival, Missed, Pushed
from kv_transfer.pump import TransferPump
from kv_transfer.transfer import EndReason, Refusal

NUM_BLOCKS = 48
BLOCK_BYTES = 64
MAX_BLOCKS = 6  # of one transfer
CONCURRENT = 4
STEP_S = 0.05  # of the campaign's own clock: a lost delivery is sent again after a few steps
MAX_STEPS = 100_000  # of one round; more is a hang

MakeAgents = Callable[[Pool, Pool], tuple[TransferAgent, TransferAgent]]


def fake_agents(source: Pool, target: Pool) -> tuple[TransferAgent, TransferAgent]:
    fabric = Fabric()
    return FakeAgent("prefill", source, fabric), FakeAgent("decode", target, fabric)


@dataclass
class Result:
    corruptions: int = 0  # injected
    detected: int = 0
    clean: int = 0  # not spoiled, not cancelled
    false_alarms: int = 0  # of those, not taken
    cancelled: int = 0
    kinds: Counter[str] = field(default_factory=Counter)  # of the corruptions
    missed: list[str] = field(default_factory=list)  # corruptions that were not detected


@dataclass
class Transfer(Job):
    slots: list[Slot] = field(default_factory=list)
    content: Pool = field(default_factory=lambda: np.empty(0, dtype=np.uint8))  # [blocks, bytes]
    num_ready: int = 0
    pushed: Pushed | None = None
    arrival: Arrival | None = None
    missed: Missed | None = None
    cancelled: bool = False
    quiet: bool = False  # after a cancellation, or a refusal that proves nothing about writes

    @property
    def over(self) -> bool:
        return self.pushed is not None and (self.arrival is not None or self.quiet)


class Campaign:
    def __init__(self, seed: int, make_agents: MakeAgents = fake_agents) -> None:
        self.random = Random(seed)
        self.result = Result()
        self.now = 0.0
        self._numbers = np.random.default_rng(seed)
        self._source, self._target = (np.zeros((NUM_BLOCKS, BLOCK_BYTES), dtype=np.uint8) for _ in range(2))
        self._sources, self._targets = BlockPool(NUM_BLOCKS), BlockPool(NUM_BLOCKS)
        self._spare = (self._targets.allocate(1) or [])[0]
        prefill, decode = make_agents(self._source, self._target)
        self.saboteur = Saboteur(prefill, self._source, self._target, self.random)
        self._prefill, self._decode = self._pump(self.saboteur, self._source), self._pump(decode, self._target)
        self._names = prefill.name, decode.name
        self._agents = prefill, decode
        self._prefill.add_peer(layout_of(self._target).hello(decode.name, decode.metadata()))
        self._decode.add_peer(layout_of(self._source).hello(prefill.name, prefill.metadata()))
        self._open: dict[str, Transfer] = {}
        self._num_begun = 0

    def run(self, num: int) -> Result:
        """Until `num` corruptions are injected and as many clean transfers made."""
        while min(self.result.corruptions, self.result.clean) < num:
            before = Counter(self._decode.counters.refused), self._prefill.counters.deliveries_resent_total
            sabotage = self.random.choice(SABOTAGES)
            spoiled = self._begin(sabotage.min_blocks)
            spoiled.sabotage = sabotage
            others = [self._begin() for _ in range(self.random.randrange(CONCURRENT))]
            self._finish()
            self._judge(spoiled, *before)
            for other in others:
                self._judge_clean(other)
        assert self._targets.num_available == NUM_BLOCKS - 1, "decode leaks blocks"
        assert self._sources.num_available == NUM_BLOCKS, "prefill leaks blocks"
        return self.result

    def close(self) -> None:
        for agent in self._agents:
            agent.close()

    def _pump(self, agent: TransferAgent, pool: Pool) -> TransferPump:
        return TransferPump(
            agent, BLOCK_BYTES, pool, self._arrived, lambda: self.now, acknowledged=True, on_missed=self._missed
        )

    def _begin(self, min_blocks: int = 1) -> Transfer:
        count = self.random.randint(min_blocks, MAX_BLOCKS)
        sources, targets = self._sources.allocate(count + 1), self._targets.reserve(count)
        assert sources is not None
        assert targets is not None
        self._num_begun += 1
        transfer = Transfer(
            str(self._num_begun), sources[:-1], targets, sources[-1], self._spare, slots=self._targets.slots(targets)
        )
        transfer.content = self._numbers.integers(0, 256, (count, BLOCK_BYTES), dtype=np.uint8)
        self._source[transfer.sources] = transfer.content
        self._targets.mark_in_flight(targets)
        self._open[transfer.transfer_id] = transfer
        self.saboteur.add(transfer)
        prefill, decode = self._names
        self._decode.receiver.expect(IncomingTransfer(transfer.transfer_id, decode, prefill, transfer.slots, 1))
        ticket = Ticket(
            transfer_id=transfer.transfer_id,
            decode_id=decode,
            decode_address="",
            first_block=0,
            slots=transfer.slots,
            ttl_ms=10_000_000,
        )
        self._prefill.pusher.push(ticket, self.now, lambda pushed: setattr(transfer, "pushed", pushed))
        return transfer

    def _finish(self) -> None:
        """Compute, push and receive in any order until every open transfer is over."""
        for _ in range(MAX_STEPS):
            for transfer in [each for each in self._open.values() if each.over]:
                self._close(transfer)
            if not self._open:
                return
            self.now += STEP_S
            transfer = self.random.choice(list(self._open.values()))
            self._compute(transfer)
            if transfer.sabotage is None and not transfer.cancelled and self.random.random() < 0.01:
                self._cancel(transfer)
            self._prefill.step()
            self._decode.step()
        raise AssertionError(f"transfers {list(self._open)} hang")

    def _compute(self, transfer: Transfer) -> None:
        first, num_blocks = transfer.num_ready, len(transfer.sources)
        if transfer.cancelled or first == num_blocks:
            return
        transfer.num_ready = self.random.randint(first + 1, num_blocks)
        last = transfer.num_ready == num_blocks
        self._prefill.pusher.ready(
            transfer.transfer_id, first, transfer.sources[first : transfer.num_ready], last, [7] * last, self.now
        )

    def _cancel(self, transfer: Transfer) -> None:
        """Decode gives up and asks for proof that nothing is in flight."""
        if transfer.arrival is None:
            transfer.cancelled = True
            self._decode.receiver.forget(transfer.transfer_id)
            self._ask(transfer)

    def _ask(self, transfer: Transfer) -> None:
        def answer(pushed: Pushed) -> None:
            assert pushed.settled
            transfer.quiet = True

        self._prefill.pusher.abort(transfer.transfer_id, answer)

    def _close(self, transfer: Transfer) -> None:
        """Both sides give the blocks back."""
        del self._open[transfer.transfer_id]
        self.saboteur.remove(transfer)
        self._sources.release([*transfer.sources, transfer.scratch])
        if transfer.arrival is None:
            self._targets.quarantine(transfer.targets)
            self._targets.confirm_quiet(transfer.targets)
        else:
            self._targets.release(transfer.targets)

    def _arrived(self, arrival: Arrival) -> None:
        transfer = self._open[arrival.delivery.transfer_id]
        assert transfer.arrival is None, "a transfer arrived twice"
        transfer.arrival = arrival
        if not arrival.bad_blocks:
            assert (self._target[transfer.targets] == transfer.content).all(), "wrong bytes were taken for right ones"
        self._targets.deliver(transfer.targets)

    def _missed(self, missed: Missed) -> None:
        transfer = self._open[missed.transfer_id]
        transfer.missed = missed
        transfer.quiet = missed.writes_over
        if not transfer.quiet:
            self._ask(transfer)

    def _judge(self, transfer: Transfer, refused_before: Counter[Refusal], resent_before: int) -> None:
        if not transfer.injected:  # there was nothing to spoil
            return self._judge_clean(transfer)
        assert transfer.sabotage is not None
        sabotage, arrival, missed = transfer.sabotage, transfer.arrival, transfer.missed
        refused = self._decode.counters.refused - refused_before
        taken = arrival is not None and not arrival.bad_blocks
        resent = self._prefill.counters.deliveries_resent_total > resent_before
        outcome = {
            Outcome.DAMAGED: arrival is not None and bool(arrival.bad_blocks),
            Outcome.REFUSED: missed is not None and missed.refusal is sabotage.reason,
            Outcome.REPAIRED: taken and resent,
            Outcome.UNHARMED: taken,
        }[sabotage.outcome]
        assert transfer.pushed is not None
        told = (transfer.pushed.end is EndReason.DELIVERED) == taken  # prefill knows it too
        self.result.corruptions += 1
        self.result.kinds[sabotage.name] += 1
        if outcome and told and (sabotage.reason is None or refused[sabotage.reason] > 0):
            self.result.detected += 1
        else:
            self.result.missed.append(f"{sabotage.name} of transfer {transfer.transfer_id}")
        return None

    def _judge_clean(self, transfer: Transfer) -> None:
        if transfer.cancelled:
            self.result.cancelled += 1
            return
        self.result.clean += 1
        taken = transfer.arrival is not None and not transfer.arrival.bad_blocks
        ended = transfer.pushed is not None and transfer.pushed.end is EndReason.DELIVERED
        self.result.false_alarms += not (taken and ended)


def campaign(seed: int, num: int, make_agents: MakeAgents = fake_agents) -> Result:
    """At least `num` corruptions and `num` clean transfers."""
    campaign = Campaign(seed, make_agents)
    try:
        return campaign.run(num)
    finally:
        campaign.close()


def main(seed: int = 0, num: int = 10_000) -> None:
    logging.disable(logging.WARNING)  # one line for each corruption
    print(json.dumps(vars(campaign(seed, num))))


if __name__ == "__main__":
    cyclopts.run(main)
