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
        if row.num_drafted:
            drawn = self._accept(sequence, row, drawn)
        else:
            sequence.num_computed += len(row.tokens)
        self._tables.index_computed(sequence)
        if sequence.num_uncomputed:
            if sequence.group.request.kind is Kind.PREFILL:
                self._announce(sequence, outcome)
        elif sequence.choice is None:
            self._end_prompt(sequence, drawn, outcome)
        else:
            self._continue(sequence, drawn, outcome)

    def _accept(self, sequence: Sequence, row: Row, drawn: ReadOnly[Drawn]) -> ReadOnly[Drawn]:
        """Take the guesses that were drawn as well, up to the first that was not; what was drawn behind it is void.

        Each draw is what it would have been without guessing: it saw the same tokens, and its randomness depends on its
        position alone. Returns the valid draws: those that were foreseen, and one more.
        """
        num_right = 0
        for guess, each in zip(row.tokens[1:], drawn, strict=False):  # one draw more than guesses
            if each.token_id != guess:
                break
            sequence.append(guess)  # no guess can end a choice
            num_right += 1
        sequence.num_computed += 1 + num_right
        self._tables.trim(sequence)
        sequence.guess_limit = max(1, 2 * num_right)
        self._totals.drafted += row.num_drafted
        self._totals.accepted += num_right
        return drawn[: num_right + 1]

    def _end_prompt(self, root: Sequence, drawn: ReadOnly[Drawn], outcome: StepOutcome) -> None:
        group = root.group
        if group.first_tokens is not None:  # drawn elsewhere, and told already
            self._requests.start_choices(root, group.first_tokens)
            return
        drawn = sorted(drawn, key=lambda each: each.choice)
        first_tokens = [each.token_id for each in drawn]
        ended = [self._tell(group, 0, [each], outcome) for each in drawn]
        if group.request.kind is Kind.PREFILL:
            self._queues.remove(root)
            group.stage = Stage.HELD
            self._announce_last(root, first_tokens, all(ended), outcome)
        else:
            self._requests.start_choices(root, first_tokens)

    def _continue(self, sequence: Sequence, drawn: ReadOnly[Drawn], outcome: StepOutcome) -> None:
        """`drawn`: right guesses, already part of the sequence, and the token that is new."""
        first_position = len(sequence.output) - (len(drawn) - 1)
        if self._tell(sequence.group, first_position, drawn, outcome):
            self._requests.end(sequence)
        else:
            sequence.append(drawn[-1].token_id)

    def _tell(self, group: Group, position: int, drawn: ReadOnly[Drawn], outcome: StepOutcome) -> bool:
        """A choice's next tokens, from `position` on, for the client. True if they are its last."""
        token_ids = [each.token_id for each in drawn]
        reason = finish_reason(token_ids[-1], position + len(drawn) - 1, group.request.sampling)
        logprobs = [each.logprob for each in drawn if each.logprob is not None] or None
        stats, choice = group.take_stats(), drawn[0].choice
        outcome.updates.append(Update(group.request_id, choice, position, token_ids, reason, logprobs, stats))
        self._totals.generated += len(drawn)
        return reason is not None

    def written(self, root: Sequence, row: Row) -> ReadyBlocks | None:
        """The blocks of a PREFILL prompt that are final once the KV of this row is, before any token is drawn."""
        group = root.group
        if group.request.kind is not Kind.PREFILL or root.ended or group.stage is Stage.HELD:
            return None
        num_tokens = row.start + len(row.tokens)
        whole = num_tokens == len(group.request.prompt)
        start, end = group.num_announced, len(root.blocks) if whole else num_tokens // self._block_size
        if end <= start:
            return None
        group.num_announced = end
        return ReadyBlocks(group.request_id, start, root.blocks[start:end], last=False)

    def _announce(self, root: Sequence, outcome: StepOutcome) -> None:
        """Full blocks of an unfinished prompt that became final."""
        group = root.group
        start, end = group.num_announced, root.num_computed // self._block_size
        if end > start:
            outcome.ready.append(ReadyBlocks(group.request_id, start, root.blocks[start:end], last=False))
            group.num_announced = end

    def _announce_last(self, root: Sequence, first_tokens: list[int], finished: bool, outcome: StepOutcome) -> None:
        """All blocks not announced yet (mostly none, see `written`), a partial last one among them."""
        group, start = root.group, root.group.num_announced
        blocks = root.blocks[start:]
        outcome.ready.append(ReadyBlocks(group.request_id, start, blocks, True, first_tokens, finished))
        group.num_announced = len(root.blocks)

    def _count(self, group: Group, row: Row, outcome: StepOutcome) -> None:
        num_tokens = len(row.tokens)
        of_prompt = min(num_tokens, max(0, len(group.request.prompt) - row.start))
        outcome.computed_tokens += num_tokens
        outcome.prompt_tokens += of_prompt
        outcome.decode_rows += int(num_tokens - row.num_drafted == 1 and of_prompt == 0)
        group.prompt_computed += of_prompt
        self._totals.prompt_computed += of_prompt
