"""The simulated router: the real index replica, bookings and placement, fed by simulated workers' reports.

Its life of a request follows `router.life`; frames, gRPC and Redis are replaced by calls and a delay. Holds one view a
worker and renews only those that changed, so that a thousand workers cost little more than what a policy reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter_ns

from diptych.engine.interface import CacheEvent
from kv_transfer.schema import EventBatch, IndexEvent, join_hashes
from loadgen.sim.bulk_scheduler import Gauges
from loadgen.sim.policy import Policy
from loadgen.sim.worker import SimWorker
from router.bookings import Booking, Bookings
from router.experience import Experience
from router.placement import Link, Placement, PromptView, WorkerView
from router.prefix_index import Applied, PrefixIndex
from router.requests import Report
from router.step_fit import StepFit

GUESS_LASTS_S = 5.0  # as `router.placer`, which drags in what only a serving process needs
_EPOCH = 0


class Front:
    """
    Attributes:
        placement_us: wall time of each look-up and choice, as a router's `diptych_placement_seconds` has it.
        guess_us: of telling the index about it, which comes after.
    """

    def __init__(
        self,
        workers: Sequence[SimWorker],
        policy: Policy,
        block_size: int,
        block_bytes: int,
        link: Link,
        chunk_tokens: int,
    ) -> None:
        """
        Args:
            link: what every prefill worker would measure of its transfers.
            chunk_tokens: most tokens of a prompt in one step.
        """
        self.index = PrefixIndex()
        self.bookings = Bookings()
        self.placement_us: list[float] = []
        self.guess_us: list[float] = []
        self._workers = {worker.worker_id: worker for worker in workers}
        self._policy = policy
        self._block_size = block_size
        self._block_bytes = block_bytes
        self._link = link
        self._chunk_tokens = chunk_tokens
        self._experience = Experience()
        self._step_fits = {worker.worker_id: StepFit() for worker in workers}
        self._turn = 0
        self._sequences = dict.fromkeys(self._workers, 0)  # of the last event batch
        self._gauges = {worker.worker_id: worker.scheduler.gauges() for worker in workers}
        self._views = [self._view(worker.worker_id) for worker in workers]
        self._stale: set[str] = set()
        self._batches: dict[str, list[EventBatch]] = {}  # reported, not applied yet
        self._left: set[int] = set()  # indices of workers that nothing is placed on any more
        for worker_id in self._workers:
            self.index.add_worker(worker_id)

    def join(self, worker: SimWorker) -> None:
        """It is placed on from now on. Its index is the next one."""
        worker_id = worker.worker_id
        self._workers[worker_id] = worker
        self._step_fits[worker_id], self._sequences[worker_id] = StepFit(), 0
        self._gauges[worker_id] = worker.scheduler.gauges()
        self._views.append(self._view(worker_id))
        self.index.add_worker(worker_id)

    def leave(self, worker: SimWorker) -> None:
        """Nothing is placed on it any more. What it still reports is taken."""
        self._left.add(worker.index)

    def views(self) -> list[WorkerView]:
        """Every worker that is placed on, as the router believes it to be now."""
        return self._fresh_views()

    def believed(self, num_tokens: int, hashes: tuple[bytes, ...], now_s: float) -> dict[str, int]:
        """Tokens of a prompt that each worker is believed to hold; who is missing holds none."""
        self.catch_up()
        usable = hashes[: (num_tokens - 1) // self._block_size]
        matches = self.index.matches(usable, now_s)
        return {worker_id: num_blocks * self._block_size for worker_id, num_blocks in matches.items()}

    def place(
        self, num_tokens: int, hashes: tuple[bytes, ...], now_s: float, max_tokens: int, *, alone: bool = False
    ) -> Placement:
        """Choose for one prompt, whose client wants `max_tokens`; take it as cached there from now on.

        Args:
            alone: as `PromptView` has it.

        Raises:
            NoCapacity: by the policy.
        """
        self.catch_up()
        began = perf_counter_ns()
        usable = hashes[: (num_tokens - 1) // self._block_size]  # one token is always computed
        matches = {each: blocks * self._block_size for each, blocks in self.index.matches(usable, now_s).items()}
        self._turn += 1
        learnt = self._experience.learnt(max_tokens)
        growth = -(-int(learnt.expected_tokens) // self._block_size)
        num_blocks = -(-num_tokens // self._block_size)
        prompt = PromptView(num_tokens, num_blocks, self._block_bytes, growth_blocks=growth, alone=alone)
        placement = self._policy(prompt, self._fresh_views(), self._turn, learnt, matches)
        chosen = perf_counter_ns()
        for worker_id in filter(None, (placement.prefill_id, placement.decode_id)):
            self.index.guess(worker_id, hashes, now_s + GUESS_LASTS_S)
        self.placement_us.append((chosen - began) / 1e3)
        self.guess_us.append((perf_counter_ns() - chosen) / 1e3)
        return placement

    def book(self, placement: Placement, num_tokens: int) -> Booking:
        """Hold the pair's capacity until `release`."""
        booking = self.bookings.book(placement, num_tokens, -(-num_tokens // self._block_size))
        self._touch(booking)
        return booking

    def prefilled(self, booking: Booking) -> None:
        """The first token is there."""
        booking.prefilled()
        self._touch(booking)

    def release(self, booking: Booking) -> None:
        booking.release()
        self._touch(booking)

    def ended(self, placement: Placement, num_tokens: int, ttft_ms: float) -> None:
        """A request has been completed: what `router.placer` learns from it."""
        report = Report(num_tokens=num_tokens, expected_ms=placement.expected_ms)
        report.marks |= {"placed": 0.0, "first_token": ttft_ms / 1e3}
        self._experience.ended(report, num_choices=1)

    def _touch(self, booking: Booking) -> None:
        self._stale.update((booking.computing_id, booking.decode_id))

    def report(self, worker: SimWorker, gauges: Gauges, events: Sequence[CacheEvent]) -> None:
        """What a worker says of itself, and its cache events as a batch of its log."""
        worker_id = worker.worker_id
        self._gauges[worker_id] = gauges
        self._step_fits[worker_id].note(gauges.num_running, worker.rates.decode_step_ms)
        self._stale.add(worker_id)
        if not events:
            return
        self._sequences[worker_id] += 1
        changes = [IndexEvent(join_hashes(each.stored), join_hashes(each.removed), each.cleared) for each in events]
        batch = EventBatch(_EPOCH, self._sequences[worker_id], changes)
        self._batches.setdefault(worker_id, []).append(batch)

    def catch_up(self) -> None:
        """Apply what workers have reported, before each look-up: several batches at once cost little more than one."""
        for worker_id, batches in self._batches.items():
            applied = self.index.apply(worker_id, *batches)
            if applied is not Applied.APPLIED:
                raise RuntimeError(f"a batch of {worker_id} was taken as {applied}")
        self._batches.clear()

    def _fresh_views(self) -> list[WorkerView]:
        """Of every worker that is placed on; made anew where something has changed."""
        for worker_id in self._stale:
            self._views[self._workers[worker_id].index] = self._view(worker_id)
        self._stale.clear()
        if not self._left:
            return self._views
        return [view for index, view in enumerate(self._views) if index not in self._left]

    def _view(self, worker_id: str) -> WorkerView:
        """As `router.fleet.Fleet.views` makes it."""
        worker, gauges, booked = self._workers[worker_id], self._gauges[worker_id], self.bookings
        fit = self._step_fits[worker_id]
        unused = worker.scheduler.pool.num_blocks - booked.blocks[worker_id]
        return WorkerView(
            worker_id=worker_id,
            role=worker.role,
            matched_tokens=0,
            queued_prefill_tokens=max(gauges.waiting_prefill_tokens, booked.tokens[worker_id]),
            num_running=max(gauges.num_sequences, booked.sequences[worker_id]),
            available_blocks=min(gauges.available_blocks, unused),
            prefill_tokens_per_s=worker.rates.prefill_tokens_per_s,
            transfer_bytes_per_s=self._link.bytes_per_s,
            best_link=self._link,
            chunk_tokens=self._chunk_tokens,
            decode_base_ms=fit.base_ms,
            decode_ms_per_sequence=fit.ms_per_sequence,
            max_running=worker.scheduler.limits.max_running,
        )
