"""What must always be true of a scheduler's book-keeping, by recounting everything. O(blocks + tokens)."""

from __future__ import annotations

from collections import Counter

from diptych.engine.block_pool import BlockPool, BlockState
from diptych.engine.limits import Limits
from diptych.engine.queues import Queues
from diptych.engine.sequence import Group, Sequence, Stage

_UNQUEUED = (Stage.RESERVED, Stage.IN_FLIGHT, Stage.HELD)
_PROMISED = {Stage.RESERVED: BlockState.RESERVED, Stage.IN_FLIGHT: BlockState.IN_FLIGHT}


def check_books(
    pool: BlockPool, queues: Queues, groups: dict[str, Group], quarantine: dict[str, list[int]], limits: Limits
) -> None:
    """Raises AssertionError naming the first thing that does not add up."""
    pool.check()
    _check_owners(pool, groups, quarantine)
    _check_queues(queues, groups, limits)
    for group in groups.values():
        for sequence in group.sequences:
            _check_sequence(sequence, limits)


def _check_owners(pool: BlockPool, groups: dict[str, Group], quarantine: dict[str, list[int]]) -> None:
    expected: dict[BlockState, Counter[int]] = {state: Counter() for state in BlockState}
    for group in groups.values():
        for sequence in group.sequences:
            promised = _PROMISED.get(group.stage)
            split = group.first_reserved if promised is not None else len(sequence.blocks)
            expected[BlockState.USED].update(sequence.blocks[:split])
            expected[promised or BlockState.USED].update(sequence.blocks[split:])
    for blocks in quarantine.values():
        expected[BlockState.QUARANTINED].update(blocks)
    for state in (BlockState.USED, BlockState.RESERVED, BlockState.IN_FLIGHT, BlockState.QUARANTINED):
        owned = expected[state]
        assert len(owned) == pool.count(state), (
            f"{pool.count(state)} blocks are {state.name}, {len(owned)} have an owner"
        )
        for block, owners in owned.items():
            assert pool.state(block) is state, f"block {block} is {pool.state(block).name}, its owner says {state.name}"
            refs = 0 if state is BlockState.QUARANTINED else owners
            assert pool.refs(block) == refs, f"block {block} counts {pool.refs(block)} users, not {refs}"


def _check_queues(queues: Queues, groups: dict[str, Group], limits: Limits) -> None:
    queued = [sequence.sequence_id for sequence in queues]
    assert len(set(queued)) == len(queued), "a sequence is in two queues"
    here = {each.sequence_id for group in groups.values() if group.stage not in _UNQUEUED for each in group.sequences}
    assert set(queued) == here, "a sequence is lost, or one that is over is still queued"
    assert len(queues.running) <= limits.max_running, "more sequences run than may"
    for sequence in queues.asking:
        assert sequence.group.stage is Stage.ASKING, "a sequence asks for a transfer it does not need"
    for sequence in (*queues.waiting, *queues.asking):
        assert not sequence.blocks, "a waiting sequence holds blocks"


def _check_sequence(sequence: Sequence, limits: Limits) -> None:
    prompt = sequence.group.request.prompt
    assert not sequence.ended, "a sequence that is over is still with its request"
    assert sequence.tokens == [*prompt, *sequence.output], "tokens are not prompt and output"
    assert (sequence.choice is None) == (not sequence.output), "only a choice that started has output"
    room = len(sequence.blocks) * limits.block_size
    assert len(sequence.blocks) <= limits.num_blocks(len(sequence.tokens)), "blocks are held for tokens nobody knows"
    assert sequence.num_computed <= min(room, len(sequence.tokens)), "computed tokens have no block"
    assert sequence.num_indexed <= sequence.num_computed // limits.block_size, "an unfinished block is indexed"
