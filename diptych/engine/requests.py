"""Which requests are here, and how their sequences come and go: created, forked into choices, ended.

Knows nothing about plans and results.
"""

from __future__ import annotations

from collections.abc import Sequence as ReadOnly
from itertools import count

from diptych.engine.block_tables import BlockTables
from diptych.engine.interface import EngineRequest, Kind
from diptych.engine.queues import Queues
from diptych.engine.sequence import Group, Sequence, Stage, finish_reason


class Requests:
    def __init__(self, queues: Queues, tables: BlockTables) -> None:
        self.groups: dict[str, Group] = {}
        self._queues = queues
        self._tables = tables
        self._ids = count()

    def create(self, request: EngineRequest, tick: int) -> None:
        """Queue a new request, at step `tick`: its root asks for blocks (RECEIVE) or waits to compute."""
        sequence_id = next(self._ids)
        stage = Stage.ASKING if request.kind is Kind.RECEIVE else Stage.ACTIVE
        group = Group(request, sequence_id, stage, tick, num_announced=request.first_block)
        root = Sequence(sequence_id, group, list(request.prompt), self._tables.prompt_hashes(group))
        group.sequences.append(root)
        self.groups[request.request_id] = group
        if stage is Stage.ASKING:
            self._queues.asking.add(root)
        else:
            self._queues.waiting.add(root)

    def find(self, request_id: str, *stages: Stage) -> Group | None:
        """The request, if it is here and at one of the stages."""
        group = self.groups.get(request_id)
        return group if group is not None and group.stage in stages else None

    def start_choices(self, root: Sequence, first_tokens: ReadOnly[int]) -> None:
        """The prompt is computed and position 0 is drawn: each choice that goes on becomes a sequence."""
        living = _living(root.group, first_tokens)
        if not living:
            self.end(root)
            return
        for choice in living[1:]:
            fork = Sequence(next(self._ids), root.group, list(root.tokens), list(root.hashes))
            self._tables.share_prompt(root, fork)
            fork.start(choice, first_tokens[choice])
            root.group.sequences.append(fork)
            self._queues.parked.add(fork)
        root.start(living[0], first_tokens[living[0]])

    def restart(self, group: Group, first_tokens: ReadOnly[int]) -> None:
        """Compute the prompt here after all; its first tokens are drawn and told already."""
        if not _living(group, first_tokens):
            self.end(group.root)
            return
        group.prompt_cached = None
        group.first_tokens = list(first_tokens)
        self._queues.waiting.add(group.root)

    def end(self, sequence: Sequence) -> None:
        """A choice is over, for whatever reason; the request with its last one."""
        group = sequence.group
        sequence.ended = True
        self._queues.remove(sequence)
        self._tables.release(sequence)
        group.sequences.remove(sequence)
        if not group.sequences:
            del self.groups[group.request_id]


def _living(group: Group, first_tokens: ReadOnly[int]) -> list[int]:
    """The choices that go on after their first token."""
    sampling = group.request.sampling
    return [choice for choice, token in enumerate(first_tokens) if finish_reason(token, 0, sampling) is None]
