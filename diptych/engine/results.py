"""Takes in what a step computed and drew, and turns it into what has to be told.

Knows nothing about who computes next.
"""

from __future__ import annotations

from collections.abc import Sequence as ReadOnly

from diptych.engine.block_tables import BlockTables
from diptych.engine.interface import Drawn, Kind, ReadyBlocks, Row, StepOutcome
from diptych.engine.limits import Limits
from diptych.engine.queues import Queues
from diptych.engine.requests import Requests
from diptych.engine.sequence import Group, Sequence, Stage, finish_reason
from diptych.engine.totals import Totals
from diptych.messages import Update


class Results:
    def __init__(self, requests: Requests, queues: Queues, tables: BlockTables, limits: Limits, totals: Totals) -> None:
        self._requests = requests
        self._queues = queues
        self._tables = tables
        self._block_size = limits.block_size
        self._totals = totals

    def take_in(self, sequence: Sequence, row: Row, drawn: ReadOnly[Drawn], outcome: StepOutcome) -> None:
        """One row was computed."""
        self._count(sequence.group, row, outcome)
        if sequence.ended or sequence.group.stage is Stage.HELD:  # aborted, or put on hold, while the step ran
            return
        sequence.num_computed += len(row.tokens)
        self._tables.index_computed(sequence)
        if sequence.num_uncomputed:
            if sequence.group.request.kind is Kind.PREFILL:
                self._announce(sequence, outcome)
        elif sequence.choice is None:
            self._end_prompt(sequence, drawn, outcome)
        else:
            self._continue(sequence, drawn[0], outcome)

    def _end_prompt(self, root: Sequence, drawn: ReadOnly[Drawn], outcome: StepOutcome) -> None:
        group = root.group
        if group.first_tokens is not None:  # drawn elsewhere, and told already
            self._requests.start_choices(root, group.first_tokens)
            return
        drawn = sorted(drawn, key=lambda each: each.choice)
        first_tokens = [each.token_id for each in drawn]
        ended = [self._tell(group, 0, each, outcome) for each in drawn]
        if group.request.kind is Kind.PREFILL:
            self._queues.remove(root)
            group.stage = Stage.HELD
            self._announce_last(root, first_tokens, all(ended), outcome)
        else:
            self._requests.start_choices(root, first_tokens)

    def _continue(self, sequence: Sequence, drawn: Drawn, outcome: StepOutcome) -> None:
        if self._tell(sequence.group, len(sequence.output), drawn, outcome):
            self._requests.end(sequence)
        else:
            sequence.append(drawn.token_id)

    def _tell(self, group: Group, position: int, drawn: Drawn, outcome: StepOutcome) -> bool:
        """One token for the client. True if it was the choice's last."""
        reason = finish_reason(drawn.token_id, position, group.request.sampling)
        logprobs = None if drawn.logprob is None else [drawn.logprob]
        stats = group.take_stats()
        token_ids = [drawn.token_id]
        outcome.updates.append(Update(group.request_id, drawn.choice, position, token_ids, reason, logprobs, stats))
        self._totals.generated += 1
        return reason is not None

    def _announce(self, root: Sequence, outcome: StepOutcome) -> None:
        """Full blocks of an unfinished prompt that became final."""
        group = root.group
        start, end = group.num_announced, root.num_computed // self._block_size
        if end > start:
            outcome.ready.append(ReadyBlocks(group.request_id, start, root.blocks[start:end], last=False))
            group.num_announced = end

    def _announce_last(self, root: Sequence, first_tokens: list[int], finished: bool, outcome: StepOutcome) -> None:
        """All blocks not announced yet, a partial last one among them."""
        group, start = root.group, root.group.num_announced
        blocks = root.blocks[start:]
        outcome.ready.append(ReadyBlocks(group.request_id, start, blocks, True, first_tokens, finished))
        group.num_announced = len(root.blocks)

    def _count(self, group: Group, row: Row, outcome: StepOutcome) -> None:
        num_tokens = len(row.tokens)
        of_prompt = min(num_tokens, max(0, len(group.request.prompt) - row.start))
        outcome.computed_tokens += num_tokens
        outcome.prompt_tokens += of_prompt
        outcome.decode_rows += int(num_tokens == 1 and of_prompt == 0)
        group.prompt_computed += of_prompt
        self._totals.prompt_computed += of_prompt
