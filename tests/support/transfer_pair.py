"""Two pumps over fake agents in one process, and a clock that tests move."""

from __future__ import annotations

from dataclasses import dataclass, field

from transfer_peers import layout_of, make_pool

from diptych.messages import Slot, Ticket
from kv_transfer.checksum import Checks, Pool
from kv_transfer.fake_agent import Fabric, FakeAgent, Faults
from kv_transfer.outcome import Arrival, Missed, Pushed
from kv_transfer.pump import TransferPump
from kv_transfer.transfer import IncomingTransfer

SLOTS = [Slot(4, 1), Slot(2, 1), Slot(6, 9)]
ALL = Checks(1.0)


@dataclass
class Side:
    pool: Pool
    agent: FakeAgent
    pump: TransferPump
    arrivals: list[Arrival]
    missed: list[Missed]
    ended: list[Pushed] = field(default_factory=list)


class Pair:
    def __init__(self, taken: Checks = ALL, demanded: Checks = ALL, acknowledged: bool = False) -> None:
        self.now = 0.0
        self._acknowledged = acknowledged
        fabric = Fabric()
        self.prefill = self._side("prefill", make_pool(), fabric, taken)
        self.decode = self._side("decode", make_pool(fill=0), fabric, demanded)
        for here, there in ((self.prefill, self.decode), (self.decode, self.prefill)):
            here.pump.add_peer(layout_of(there.pool).hello(there.agent.name, there.agent.metadata()))

    def _side(self, name: str, pool: Pool, fabric: Fabric, checks: Checks) -> Side:
        agent = FakeAgent(name, pool, fabric, Faults())
        arrivals: list[Arrival] = []
        missed: list[Missed] = []
        pump = TransferPump(
            agent,
            pool.shape[1],
            pool,
            arrivals.append,
            lambda: self.now,
            checks=checks,
            acknowledged=self._acknowledged,
            on_missed=missed.append,
        )
        return Side(pool, agent, pump, arrivals, missed)

    @property
    def faults(self) -> Faults:
        return self.prefill.agent.faults

    def begin(self, ready: bool = True) -> None:
        self.decode.pump.receiver.expect(IncomingTransfer("t", "decode", "prefill", SLOTS, num_choices=1))
        self.prefill.pump.pusher.push(ticket(), 0.0, self.prefill.ended.append)
        if ready:
            self.prefill.pump.pusher.ready("t", 0, [0, 1, 2], True, [7], self.now)

    def step(self, count: int = 12) -> None:
        for _ in range(count):
            self.now += 0.001
            self.prefill.pump.step()
            self.decode.pump.step()
            self.prefill.pump.check()
            self.decode.pump.check()

    def aborted(self) -> list[Pushed]:
        outcomes: list[Pushed] = []
        self.prefill.pump.pusher.abort("t", outcomes.append)
        return outcomes


def ticket(transfer_id: str = "t", ttl_ms: int = 1_000) -> Ticket:
    return Ticket(
        transfer_id=transfer_id, decode_id="decode", decode_address="", first_block=0, slots=SLOTS, ttl_ms=ttl_ms
    )
