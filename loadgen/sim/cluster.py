"""A whole cluster in virtual time: the life of every request, as `router.life` and the workers' services lead it.

    arrive ─► place, book ─► decode reserves ─► prefill computes, pushes ─► first token ─► delivered ─► decode ─► end
                     └──────────────► decode computes the prompt itself ──────────────────────────────────┘

Deterministic: the same configuration and requests give the same event-trace hash. What it leaves out: failures,
deadlines, clients that go away, and the time that router and Python take.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf

from diptych.engine.interface import CacheEvent, EngineRequest, Kind, ReadyBlocks, Reservation
from diptych.errors import DiptychError, NoCapacity
from diptych.messages import Role, Update
from loadgen.sim.assembly import Translator, make_worker, make_workers
from loadgen.sim.bulk_scheduler import Gauges
from loadgen.sim.config import SimConfig
from loadgen.sim.event_loop import NS_PER_MS, NS_PER_S, EventLoop, Order
from loadgen.sim.front import Front
from loadgen.sim.gaps import Gaps
from loadgen.sim.handover import Handover, Wires
from loadgen.sim.requests import Record, SimRequest
from loadgen.sim.waiting import Waiting
from loadgen.sim.worker import SimWorker
from loadgen.sim.workload import Workload
from router.admission.admission import Admission
from router.admission.ask import Ask, Go, Refuse
from router.admission.line import Entry
from router.bookings import Booking
from router.placement import Link, Placement


@dataclass(slots=True)
class _Life:
    """A request that has not ended."""

    record: Record
    engine_request: EngineRequest
    placement: Placement
    booking: Booking
    entry: Entry | None  # in the router's queue; None: there is none
    reserved: bool = False
    prompt_done_ns: int = 0


_Asking = tuple[Record, EngineRequest]


class Cluster:
    """One run. `run` may be called once.

    Attributes: records in order of arrival; gaps between tokens; workers; front; loop.
    """

    def __init__(self, config: SimConfig, workload: Workload) -> None:
        self.config = config
        self.loop = EventLoop()
        self.records: list[Record] = []
        self.gaps = Gaps()
        self.workers = make_workers(config, self.loop, self)
        self.front = Front(
            self.workers,
            config.policy,
            config.limits.block_size,
            config.block_bytes,
            Link(config.wire_bytes_per_s, config.wire_latency_ms),
            config.limits.max_batch_tokens,
        )
        self.wires = Wires(
            self.loop, config.wire_bytes_per_s, round(config.wire_latency_ms * NS_PER_MS), config.block_bytes
        )
        self._workload = workload
        self._hop_ns = round(config.hop_ms * NS_PER_MS)
        self._translate = Translator(config.limits.block_size)
        self._lives: dict[str, _Life] = {}
        self._handovers: dict[str, Handover] = {}  # whose prompts are not computed yet
        self._by_id = {worker.worker_id: worker for worker in self.workers}
        self._all_planned = False
        limits, views = config.admission, self.front.views
        self._waiting = (
            Waiting(Admission(limits, views), self.loop, self._hop_ns, self._begin, self._turn_away)
            if limits is not None
            else None
        )

    def run(self) -> None:
        """Until every request has ended.

        Raises:
            RuntimeError: the books do not add up afterwards.
        """
        self._plan_next(self._workload.planned())
        self.loop.run()
        self.front.catch_up()
        if self._lives or self.num_queued or self.front.bookings.total:
            never = len(self._lives) + self.num_queued
            raise RuntimeError(f"{never} requests never ended; bookings: {self.front.bookings.total}")

    @property
    def num_queued(self) -> int:
        """Requests that wait in the router."""
        return self._waiting.core.num_queued if self._waiting else 0

    @property
    def num_queued_tokens(self) -> int:
        """Of their prompts."""
        return self._waiting.core.num_queued_tokens if self._waiting else 0

    # --- a fleet that changes (`elastic`) -----------------------------------------------------------------------------

    @property
    def over(self) -> bool:
        """Nothing runs, and nothing is planned any more."""
        return self._all_planned and not self._lives and not self.num_queued

    def join(self, role: Role) -> SimWorker:
        """Another worker serves from now on."""
        worker = make_worker(self.config, len(self.workers), role, self.loop, self)
        self.workers.append(worker)
        self._by_id[worker.worker_id] = worker
        self.front.join(worker)
        self.loop.note(b"join", self.loop.now_ns, 0, worker.index)
        return worker

    def drain(self, worker: SimWorker) -> None:
        """Nothing is placed on this worker any more; what it has goes on to its end."""
        self.front.leave(worker)
        self.loop.note(b"drain", self.loop.now_ns, 0, worker.index)

    def is_done(self, worker: SimWorker) -> bool:
        """Whether a worker that drains holds nothing of any request."""
        pairs = (life.placement for life in self._lives.values())
        if any(worker.worker_id in (pair.prefill_id, pair.decode_id) for pair in pairs):
            return False
        stats = worker.scheduler.stats()
        return not (stats.num_running or stats.num_waiting or stats.num_loading or stats.num_held)

    # --- a request's life ---------------------------------------------------------------------------------------------

    def _plan_next(self, planned: Iterator[SimRequest]) -> None:
        """One planned arrival at a time, so that a long trace does not fill the heap."""
        request = next(planned, None)
        self._all_planned = request is None
        if request is not None:
            self.loop.at(request.arrival_ns, Order.INPUT, lambda: self._arrive_and_plan_next(request, planned))

    def _arrive_and_plan_next(self, request: SimRequest, planned: Iterator[SimRequest]) -> None:
        self._plan_next(planned)
        self._arrive(request)

    def _arrive(self, request: SimRequest) -> None:
        record = Record(request)
        self.records.append(record)
        self.loop.note(b"arrive", self.loop.now_ns, request.number)
        engine_request = self._translate(request)
        if self._waiting is None:
            self._begin((record, engine_request))
            return
        now_s, hashes = self.loop.now_ns / NS_PER_S, engine_request.prompt_hashes or ()
        ask = Ask(
            num_prompt_tokens=request.input_length,
            held=self.front.believed(request.input_length, hashes, now_s),
            deadline_ms=inf,
            ttft_limit_ms=self.config.ttft_limit_ms or inf,
            priority=request.priority,
            tenant=request.tenant,
        )
        self._waiting.arrive((record, engine_request), ask)

    def _turn_away(self, asking: _Asking, refused: Refuse) -> None:
        self._refuse(asking[0], NoCapacity(refused.reason, retry_after_s=refused.retry_after_ms / 1e3))

    def _begin(self, asking: _Asking, go: Go | None = None) -> None:
        (record, engine_request), entry = asking, go.entry if go else None
        try:
            life = self._place(record, engine_request, entry, alone=go is not None and go.alone)
        except DiptychError as error:
            if self._waiting and entry:
                self._waiting.leave(entry)
            self._refuse(record, error)
            return
        self._lives[record.request.request_id] = life
        if self._waiting and entry:
            self._waiting.placed(entry, life.placement.decode_id)
        if life.placement.prefill_id:
            self._send(self._by_id[life.placement.decode_id], life, Kind.RECEIVE)
            timeout_ns = round(self.config.reserve_timeout_ms * NS_PER_MS)
            self.loop.after(timeout_ns, partial(self._check_reserved, life))
        else:
            self._send(self._by_id[life.placement.decode_id], life, Kind.LOCAL)

    def _place(self, record: Record, engine_request: EngineRequest, entry: Entry | None, *, alone: bool) -> _Life:
        request, hashes = record.request, engine_request.prompt_hashes or ()
        now_s, max_tokens = self.loop.now_ns / NS_PER_S, request.output_length
        placement = self.front.place(request.input_length, hashes, now_s, max_tokens, alone=alone)
        decode = self._by_id[placement.decode_id]
        self.config.limits.check_fits(engine_request, self.config.num_blocks)
        booking = self.front.book(placement, request.input_length)
        record.decode_worker = decode.index
        record.prefill_worker = self._by_id[placement.prefill_id].index if placement.prefill_id else -1
        record.predicted_cached = placement.predicted_cached
        self.loop.note(b"place", self.loop.now_ns, request.number, record.prefill_worker * 100_000 + decode.index)
        return _Life(record, engine_request, placement, booking, entry)

    def _send(self, worker: SimWorker, life: _Life, kind: Kind, first_block: int = 0) -> None:
        of = life.engine_request
        request = EngineRequest(
            of.request_id, kind, of.prompt, of.sampling, of.hash_key, first_block, prompt_hashes=of.prompt_hashes
        )
        if self._hop_ns:
            self.loop.after(self._hop_ns, partial(worker.add, request))
        else:
            worker.add(request)

    def _check_reserved(self, life: _Life) -> None:
        request_id = life.record.request.request_id
        if not life.reserved and self._lives.get(request_id) is life:
            self._by_id[life.placement.decode_id].abort(request_id)
            self._refuse(life.record, NoCapacity("decode had no room within reserve_timeout_ms"))

    def _refuse(self, record: Record, error: DiptychError) -> None:
        record.error = error.code
        self.loop.note(b"refuse", self.loop.now_ns, record.request.number)
        self._end(record)

    def _end(self, record: Record) -> None:
        life = self._lives.pop(record.request.request_id, None)
        if life is not None:
            self.front.release(life.booking)
            if self._waiting and life.entry:
                self._waiting.leave(life.entry)
        if (request := self._workload.after_end(self.loop.now_ns)) is not None:
            self.loop.at(request.arrival_ns, Order.INPUT, partial(self._arrive, request))

    # --- what workers tell (`worker.Listener`) ------------------------------------------------------------------------

    def on_reservation(self, worker: SimWorker, reservation: Reservation) -> None:
        life = self._lives[reservation.request_id]
        life.reserved = True
        worker.mark_in_flight(reservation.request_id)
        prefill = self._by_id[life.placement.prefill_id]
        delivered = partial(self._delivered, life)
        self._handovers[reservation.request_id] = Handover(self.wires, prefill, worker, reservation, delivered)
        if self._hop_ns:
            send = partial(self._send, prefill, life, Kind.PREFILL, reservation.first_block)
            self.loop.after(self._hop_ns, send)
        else:
            self._send(prefill, life, Kind.PREFILL, reservation.first_block)

    def on_update(self, worker: SimWorker, update: Update) -> None:
        life = self._lives[update.request_id]
        record, now = life.record, self.loop.now_ns + self._hop_ns
        if record.first_token_ns < 0:
            record.first_token_ns = now
            life.prompt_done_ns = self.loop.now_ns
            self.front.prefilled(life.booking)
            if self._waiting and life.entry:
                self._waiting.prefilled(life.entry)
            self.loop.note(b"first", now, record.request.number, worker.index)
            if update.stats is not None:
                record.cached = update.stats.prompt_cached
        else:
            self.gaps.add(now - record.last_token_ns)
        record.last_token_ns = now
        if self.config.content:
            record.output += update.token_ids
        if update.finish_reason:
            record.finished = True
            self.front.ended(life.placement, record.request.output_length, record.ttft_ms)
            self.loop.note(b"end", now, record.request.number, worker.index)
            self._end(record)

    def on_ready(self, worker: SimWorker, ready: ReadyBlocks) -> None:
        handover = self._handovers[ready.request_id]
        if ready.last:
            del self._handovers[ready.request_id]
        if ready.finished:
            handover.cancel()
        else:
            handover.ready(ready)

    def on_report(self, worker: SimWorker, gauges: Gauges, events: Sequence[CacheEvent]) -> None:
        self.front.report(worker, gauges, events)
        if self._waiting:
            self._waiting.reported()

    def on_decode_run(self, worker: SimWorker, request_ids: Sequence[str], ends_ns: Sequence[int]) -> None:
        first, last = ends_ns[0] + self._hop_ns, ends_ns[-1] + self._hop_ns
        for request_id in request_ids:
            record = self._lives[request_id].record
            self.gaps.add(first - record.last_token_ns)
            record.last_token_ns = last
        self.gaps.add_run(ends_ns, len(request_ids))

    def _delivered(self, life: _Life, first_tokens: Sequence[int]) -> None:
        life.record.transfer_ns = self.loop.now_ns - life.prompt_done_ns
        self.loop.note(b"deliver", self.loop.now_ns, life.record.request.number, life.record.decode_worker)


def simulate(config: SimConfig, workload: Workload) -> Cluster:
    """Run a workload to its end."""
    cluster = Cluster(config, workload)
    was_on = gc.isenabled()
    gc.disable()  # nothing here goes round in circles: memory stays the same, and a fifth of the time is saved
    try:
        cluster.run()
    finally:
        if was_on:
            gc.enable()
    return cluster
