"""Everything that can happen to the workers of a `World`, as events of a name and two numbers.

The numbers pick among what is possible at that moment, so any sequence of events is valid: hypothesis can invent and
shrink them, a seeded generator can draw millions.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import TypeVar

from transfer_workers import TTL_S, Decode, Prefill, Worker
from transfer_world import World

from kv_transfer.agent import TransferError
from kv_transfer.fake_agent import Faults
from kv_transfer.incoming import IncomingEnd

Picked = TypeVar("Picked")

MAX_WORKERS = 3  # of a kind
WORK = (  # as often as they stand here
    *("reserve", "reserve", "send_ticket", "ticket_arrives", "ticket_arrives", "compute", "compute", "compute"),
    *("step", "step", "step_all", "step_all", "bytes_land", "time_passes", "use", "reuse", "finish", "finish"),
)
CHANGES = ("prefill_cancels", "decode_cancels", "ask_for_proof", "proof_arrives")
TROUBLE = (
    *("freeze_or_thaw", "die", "join", "death_is_told", "old_message"),
    *("fault", "fault", "writes_fail", "all_is_well", "all_is_well"),
)
FAULTS = (
    *("never_complete", "fail_posts", "fail_polls", "fail_polls", "land_after_death"),
    *("lose_notifications", "duplicate_notifications", "hold_notifications", "flip_bit"),
)
WAITS_S = (0.01, 0.01, 0.01, 0.3, 0.01, 0.3, 0.01, TTL_S)


class Churn:
    def __init__(self, decode_blocks: int, prefill_blocks: int) -> None:
        self.world = World()
        self.sizes = {"decode": decode_blocks, "prefill": prefill_blocks}
        self.sent: list[bytes] = []  # every notification ever sent
        self.names: list[str] = []  # of every worker that ever was
        for kind in ("prefill", "prefill", "decode"):
            self._add(kind)

    def happen(self, event: str, at: int, which: int) -> None:
        getattr(self, f"_{event}")(at, which)
        self.world.check()

    def draw(self, random: Random, events: Sequence[str]) -> None:
        """One of `events`, with any numbers."""
        self.happen(random.choice(events), random.getrandbits(16), random.getrandbits(16))

    # --- work

    def _reserve(self, at: int, which: int) -> None:
        decode, prefill = self._pick(self._awake_decodes, at), self._pick(list(self.world.prefills.values()), which)
        if decode is None or prefill is None:
            return
        transfer_id = decode.reserve(prefill.name, (2, 1, 3, 4, 0)[which // 8 % 5])
        if transfer_id is not None and at // 8 % 4 < 3:
            decode.send_ticket(transfer_id)

    def _send_ticket(self, at: int, which: int) -> None:
        decode = self._pick(self._awake_decodes, at)
        kept = [name for name, each in decode.receiving.items() if not each.in_flight] if decode else []
        if decode is not None and (name := self._pick(kept, which)) is not None:
            decode.send_ticket(name)

    def _ticket_arrives(self, at: int, which: int) -> None:
        if self.world.tickets:
            prefill_id, ticket = self.world.tickets.pop(which % len(self.world.tickets))
            prefill = self.world.prefills.get(prefill_id)
            if prefill is not None and not prefill.frozen and at % 16 < 15:  # else it is lost
                prefill.start(ticket)

    def _compute(self, at: int, which: int) -> None:
        prefill = self._pick(self._awake_prefills, at)
        if prefill is not None and (name := self._pick(list(prefill.pushes), which)) is not None:
            prefill.compute(name, (4, 1, 2)[which // 8 % 3])

    def _step(self, at: int, which: int) -> None:
        if (worker := self._pick(self._awake, at)) is not None:
            for _ in range(1 + which % 3):
                worker.pump.step()

    def _step_all(self, at: int, which: int) -> None:
        for worker in self._awake:
            worker.pump.step()

    def _bytes_land(self, at: int, which: int) -> None:
        if (worker := self._pick(list(self.world.prefills.values()), at)) is not None:
            worker.agent.land_in_flight()

    def _time_passes(self, at: int, which: int) -> None:
        self.world.now += WAITS_S[which % len(WAITS_S)]

    def _use(self, at: int, which: int) -> None:
        if (decode := self._pick(self._awake_decodes, at)) is not None:
            decode.use(1 + which % 4)

    def _reuse(self, at: int, which: int) -> None:
        if (decode := self._pick(self._awake_decodes, at)) is not None:
            decode.reuse(str(max(1, self.world.names - which % 32)))

    def _finish(self, at: int, which: int) -> None:
        decode = self._pick(self._awake_decodes, at)
        if decode is not None and (name := self._pick(list(decode.running), which)) is not None:
            decode.finish(name)

    # --- somebody changes their mind

    def _prefill_cancels(self, at: int, which: int) -> None:
        prefill = self._pick(self._awake_prefills, at)
        if prefill is not None and (name := self._pick(list(prefill.pushes), which)) is not None:
            prefill.abort(name)

    def _decode_cancels(self, at: int, which: int) -> None:
        decode = self._pick(self._awake_decodes, at)
        if decode is not None and (name := self._pick(list(decode.receiving), which)) is not None:
            decode.cancel(name, (IncomingEnd.FORGOTTEN, IncomingEnd.EXPIRED)[which // 8 % 2])
            if at // 8 % 4 and name in decode.quarantine:
                self.world.revoke(decode, name)

    def _ask_for_proof(self, at: int, which: int) -> None:
        decode = self._pick(self._awake_decodes, at)
        if decode is not None and (name := self._pick(list(decode.quarantine), which)) is not None:
            self.world.revoke(decode, name)

    def _proof_arrives(self, at: int, which: int) -> None:
        if self.world.answers:
            decode = self.world.decodes.get(self.world.answers[0][0])
            if decode is None or not decode.frozen:
                self.world.answer()

    # --- what goes wrong

    def _freeze_or_thaw(self, at: int, which: int) -> None:
        if (worker := self._pick(self._all, at)) is not None:
            worker.frozen = not worker.frozen and which % 3 > 0  # mostly thaw: a world of frozen workers is dull

    def _die(self, at: int, which: int) -> None:
        if (worker := self._pick(self._all, at)) is not None:
            self.world.kill(worker)
            if which % 4 < 3:
                self._add(worker.name.partition("-")[0])
            if isinstance(worker, Prefill) and which // 4 % 2:
                for decode in self._awake_decodes:
                    decode.proven_dead(worker.name)

    def _join(self, at: int, which: int) -> None:
        kind = ("prefill", "decode")[which % 2]
        if len(self.world.prefills if kind == "prefill" else self.world.decodes) < MAX_WORKERS:
            self._add(kind)

    def _death_is_told(self, at: int, which: int) -> None:
        dead = [name for name in self.names if name not in self.world.prefills and name not in self.world.decodes]
        worker, name = self._pick(self._awake, at), self._pick(dead[-8:], which)
        if worker is None or name is None:
            return
        if isinstance(worker, Decode):
            worker.proven_dead(name)
        else:
            worker.pump.lose_peer(name)

    def _fault(self, at: int, which: int) -> None:
        if (worker := self._pick(self._all, at)) is not None:
            setattr(worker.agent.faults, FAULTS[which % len(FAULTS)], True)

    def _writes_fail(self, at: int, which: int) -> None:
        """What is reported as failed lands late."""
        busy = [prefill for prefill in self.world.prefills.values() if prefill.pump.pusher.active]
        if (worker := self._pick(busy, at)) is not None:
            faults = worker.agent.faults
            faults.fail_polls = faults.fail_posts = faults.land_after_failure = faults.never_complete = True

    def _all_is_well(self, at: int, which: int) -> None:
        if (worker := self._pick(self._all, at)) is not None:
            worker.agent.faults = self._healthy(which)

    def _old_message(self, at: int, which: int) -> None:
        """It comes again, from anybody, to anybody, whoever it was for."""
        here, there = self._pick(self._all, at), self._pick(self._all, which)
        payload = self._pick(self.sent[-64:], at // 8)
        if here is not None and there is not None and payload is not None:
            try:
                here.agent.send_notification(there.name, payload)
            except TransferError:
                return  # they have not met

    # --- insides

    @property
    def _all(self) -> list[Worker]:
        return [*self.world.prefills.values(), *self.world.decodes.values()]

    @property
    def _awake(self) -> list[Worker]:
        return [worker for worker in self._all if not worker.frozen]

    @property
    def _awake_decodes(self) -> list[Decode]:
        return [worker for worker in self.world.decodes.values() if not worker.frozen]

    @property
    def _awake_prefills(self) -> list[Prefill]:
        return [worker for worker in self.world.prefills.values() if not worker.frozen]

    def _add(self, kind: str) -> None:
        add = self.world.add_prefill if kind == "prefill" else self.world.add_decode
        worker: Worker = add(self.sizes[kind])
        worker.agent.faults = self._healthy(len(self.names))
        self.names.append(worker.name)

    def _healthy(self, number: int) -> Faults:
        """Quick as shared memory or slow as a network, which is where most of the danger is."""
        return Faults(
            polls_until_done=(2, 0, 3, 1)[number % 4],
            write_after_release=True,
            land_after_death=number // 4 % 2 == 1,
            alter_notification=self._record,
        )

    def _record(self, payload: bytes) -> list[bytes]:
        self.sent.append(payload)
        return [payload]

    @staticmethod
    def _pick(among: Sequence[Picked], number: int) -> Picked | None:
        return among[number % len(among)] if among else None
