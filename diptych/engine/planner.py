"""Decides what one step computes: who decodes, who continues its prompt, who is admitted, who has to yield.

Continuous batching with chunked prefill (Sarathi-Serve, OSDI'24): running sequences decode one token each, and what is
left of the token budget goes to prompts. What is left then goes to guesses (`diptych.engine.drafts`), if they are on.
Everything goes by rank (`diptych.engine.sequence.Rank`): priority, then age.

Blocks for all known tokens are taken at admission, so a prompt never stops half-way for lack of blocks; only decoding
can run out of them. Then the sequence of the worst rank yields and is recomputed later. Nobody is preempted to admit
another. The best one never yields to another, so some request always gets to its end; and since a rank never changes
while those of newcomers get worse, each request is the best one sooner or later.

Whoever is next and lacks blocks is not overtaken: others would keep a large one waiting for ever. Blocks that are held
for a push, reserved or quarantined are simply not available. A guess takes no block and no budget from anybody: it is
made last, and blocks it took for nothing are free again before the next plan.

Knows nothing about results, clients or time.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from diptych.engine.block_tables import BlockTables
from diptych.engine.drafts import NgramDrafter
from diptych.engine.interface import Plan, Reservation
from diptych.engine.limits import Limits
from diptych.engine.queues import Queues
from diptych.engine.sequence import Sequence, Stage


@dataclass(slots=True)
class Step:
    """A plan and what came with it."""

    plan: Plan
    sequences: list[Sequence] = field(default_factory=list)  # one for each row
    reservations: list[Reservation] = field(default_factory=list)
    admitted: list[Sequence] = field(default_factory=list)  # those that got their blocks
    num_preempted: int = 0
    num_queried: int = 0  # prompt tokens of requests given blocks for the first time
    num_cached: int = 0  # of those of them that compute here, found in the cache
    num_tokens: int = 0  # in the rows

    def add(self, sequence: Sequence, num_tokens: int) -> None:
        self.plan.rows.append(sequence.row(num_tokens))
        self.sequences.append(sequence)
        self.num_tokens += num_tokens


class Planner:
    def __init__(self, queues: Queues, tables: BlockTables, limits: Limits) -> None:
        self._queues = queues
        self._tables = tables
        self._limits = limits
        self._drafter = NgramDrafter(limits)
        self.tick = 0  # steps planned: the only time the scheduler knows

    def plan(self) -> Step:
        step = Step(Plan(rows=[]))
        self._queues.promote(self._limits.max_running)
        self._decode(step)
        self._continue_prompts(step)
        self._admit(step)
        if self._drafter.max_tokens:
            self._guess(step)
        self.tick += bool(step.plan.rows)
        return step

    def _decode(self, step: Step) -> None:
        for sequence in self._queues.ranked():
            if self._budget(step) == 0:
                return
            still_running = sequence.sequence_id in self._queues.running  # it may have yielded to a better one
            if still_running and sequence.decoding and self._make_room(sequence, step):
                step.add(sequence, 1)

    def _make_room(self, sequence: Sequence, step: Step) -> bool:
        """A block for the next token, at the expense of sequences of worse rank. False if it had to yield itself."""
        while not self._tables.extend(sequence, step.plan.copies):
            victim = self._queues.victim()  # never one that has a row: rows go to the better ones first
            self._queues.remove(victim)
            self._tables.release(victim)
            self._queues.waiting.add(victim)
            step.num_preempted += 1
            if victim is sequence:
                return False
        return True

    def _continue_prompts(self, step: Step) -> None:
        for sequence in self._queues.ranked():
            if not sequence.decoding and (budget := self._budget(step)):
                step.add(sequence, min(budget, sequence.num_uncomputed))

    def _admit(self, step: Step) -> None:
        queues = self._queues
        while True:
            has_place = len(queues.running) + len(queues.parked) < self._limits.max_running
            sequence = queues.next(can_compute=has_place and self._budget(step) > 0, tick=self.tick)
            if sequence is None or not self._grant(sequence, step):
                return
            step.admitted.append(sequence)

    def _grant(self, sequence: Sequence, step: Step) -> bool:
        group = sequence.group
        if group.stage is Stage.ASKING:
            reservation = self._tables.reserve(sequence)
            if reservation is None:
                return False
            group.stage = Stage.RESERVED
            step.num_queried += len(group.request.prompt)
            self._queues.remove(sequence)
            step.reservations.append(reservation)
            return True
        first_time = group.prompt_cached is None
        if not self._tables.admit(sequence):
            return False
        if first_time:
            step.num_queried += len(group.request.prompt)
            step.num_cached += group.prompt_cached or 0
        self._queues.remove(sequence)
        self._queues.run(sequence)
        step.add(sequence, min(self._budget(step), sequence.num_uncomputed))
        return True

    def _guess(self, step: Step) -> None:
        for row, sequence in zip(step.plan.rows, step.sequences, strict=True):
            if sequence.decoding and (budget := self._budget(step)):
                guess = self._drafter.guess(sequence, budget)
                room = self._tables.extend_for_guess(sequence, len(guess)) if guess else 0
                if room:
                    sequence.speculate(row, guess[:room])
                    step.num_tokens += room

    def _budget(self, step: Step) -> int:
        return self._limits.max_batch_tokens - step.num_tokens
