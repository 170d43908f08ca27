"""The real scheduler, with a short cut: many decode steps in which nothing else happens, in one call.

While nobody joins, ends, yields or computes a prompt, a step only appends one token to each running sequence, takes a
block here and indexes one there. `quiet_steps` says for how long it stays like this, `decode_many` does so many steps
and leaves everything (blocks, cache events in their order, counters) as the same number of `plan` and `commit` would
have, if each sequence had drawn its last token again and again. For simulations without KV content.

Reaches into the scheduler's parts, which is why it is a subclass. Knows no time.
"""

from __future__ import annotations

from dataclasses import dataclass

from diptych.engine.block_pool import BlockState
from diptych.engine.scheduler import Scheduler
from diptych.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Gauges:
    """What placement wants to know of a worker (`WorkerStats` has more, and costs more)."""

    waiting_prefill_tokens: int
    num_sequences: int  # running and waiting
    num_running: int
    available_blocks: int  # free and cached


class BulkScheduler(Scheduler):
    """A `Scheduler` for requests of one choice, without guessing ahead."""

    def gauges(self) -> Gauges:
        queues, pool = self._queues, self.pool
        waiting = len(queues.waiting) + len(queues.asking)
        running = len(queues.running) + len(queues.parked)  # as `WorkerStats` counts them
        return Gauges(queues.num_prefill_tokens, running + waiting, running, pool.num_available)

    def running(self) -> list[Sequence]:
        """The sequences that the next quiet step decodes, best rank first."""
        return self._queues.ranked()

    def quiet_steps(self) -> int:
        """For how many steps from now on nothing but decoding happens, if no input comes. Never too many."""
        running = list(self._queues.running.values())
        if not running or len(running) > self.limits.max_batch_tokens or self._step is not None:
            return 0
        if not all(each.decoding and not each.borrows_tail for each in running) or not self._nobody_joins():
            return 0
        until_end = min(each.group.request.sampling.max_tokens - len(each.output) for each in running) - 1
        return self._steps_with_room(running, until_end)

    def decode_many(self, num_steps: int) -> None:
        """`num_steps` steps, at most as many as `quiet_steps` says."""
        running = self.running()
        size = self.limits.block_size
        events: list[tuple[int, bool, int]] = []  # step, whether a block is full (else: one is needed), whose
        for index, each in enumerate(running):
            begin, end = each.num_computed, each.num_computed + num_steps
            first_new = max(len(each.blocks) * size, -(-begin // size) * size)
            events += [(position - begin, False, index) for position in range(first_new, end, size)]
            first_full = (begin // size + 1) * size
            events += [(position - begin - 1, True, index) for position in range(first_full, end + 1, size)]
            each.tokens += each.output[-1:] * num_steps
            each.output += each.output[-1:] * num_steps
            each.num_computed = end
        for step, is_full, index in sorted(events):
            self._take_or_index(running[index], is_full, running[index].num_computed - num_steps + step + 1)
        self._planner.tick += num_steps
        self._totals.steps, self._totals.step_tokens = self._planner.tick, len(running)
        self._totals.generated += num_steps * len(running)

    def _take_or_index(self, sequence: Sequence, is_full: bool, num_computed: int) -> None:
        if is_full:
            end, sequence.num_computed = sequence.num_computed, num_computed
            self._tables.index_computed(sequence)
            sequence.num_computed = end
        elif grown := self.pool.allocate(1):
            sequence.blocks += grown
        else:
            raise RuntimeError("the pool ran out of blocks in a quiet step")

    def _nobody_joins(self) -> bool:
        """Whoever waits goes on waiting: for a place, or for blocks, of which decoding leaves only fewer."""
        queues, full = self._queues, len(self._queues.running) >= self.limits.max_running
        if queues.parked and not full:
            return False
        if queues.waiting and queues.asking:  # who is next depends on how long they have waited
            return False
        if queues.asking:
            return self._lacks_blocks(queues.asking.first())
        has_place = len(queues.running) + len(queues.parked) < self.limits.max_running
        has_budget = len(queues.running) < self.limits.max_batch_tokens
        return not queues.waiting or not (has_place and has_budget) or self._lacks_blocks(queues.waiting.first())

    def _lacks_blocks(self, sequence: Sequence | None) -> bool:
        if sequence is None:
            return True
        usable = sequence.hashes[: (len(sequence.tokens) - 1) // self.limits.block_size]
        cached = self.pool.match(usable)
        idle = sum(self.pool.state(block) is BlockState.CACHED for block in cached)
        return self.limits.num_blocks(len(sequence.tokens)) - len(cached) > self.pool.num_available - idle

    def _steps_with_room(self, running: list[Sequence], num_steps: int) -> int:
        """The most steps, up to `num_steps`, for which there are blocks enough."""
        low, high = 0, max(0, num_steps)
        while low < high:
            middle = (low + high + 1) // 2
            needed = sum(
                max(0, self.limits.num_blocks(each.num_computed + middle) - len(each.blocks)) for each in running
            )
            low, high = (middle, high) if needed <= self.pool.num_available else (low, middle - 1)
        return low
