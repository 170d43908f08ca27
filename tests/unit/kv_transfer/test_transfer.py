"""Prefill's side of a transfer: examples, then every order of events hypothesis can think of."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from diptych.messages import Slot
from kv_transfer.transfer import (
    LONGEST_RESEND_S,
    MAX_BLOCKS_PER_WRITE,
    MAX_WRITES_IN_FLIGHT,
    RESEND_S,
    EndReason,
    Notify,
    OutgoingTransfer,
    Post,
    Refusal,
)

SLOTS = [Slot(10, 1), Slot(11, 1), Slot(12, 4)]


def outgoing(
    slots: list[Slot] = SLOTS, first_block: int = 2, deadline: float = 100.0, acknowledged: bool = False
) -> OutgoingTransfer:
    return OutgoingTransfer("t", slots, first_block, deadline, acknowledged)


def sent(deadline: float = 100.0) -> OutgoingTransfer:
    """All is written and one copy of the delivery is on its way, at time 0."""
    transfer = outgoing(deadline=deadline, acknowledged=True)
    transfer.ready(2, [5, 6, 7], last=True, first_tokens=[99])
    transfer.advance(0)
    transfer.write_done(0, [101, None, 103])
    assert transfer.advance(0) == Notify(tuple(SLOTS), (101, None, 103), (99,))
    transfer.notified(0)
    return transfer


def test_blocks_are_written_as_they_become_ready_and_announced_at_the_end() -> None:
    transfer = outgoing()
    transfer.ready(2, [5], last=False)
    assert transfer.advance(0) == Post(0, 0, ((5, 10),))
    transfer.ready(3, [6, 7], last=True, first_tokens=[99])
    assert transfer.advance(0) == Post(1, 1, ((6, 11), (7, 12)))
    assert transfer.advance(0) is None
    transfer.write_done(1, [102, 103])
    assert transfer.advance(0) is None  # the first write is still in flight
    transfer.write_done(0, [101])
    assert transfer.advance(0) == Notify(tuple(SLOTS), (101, 102, 103), (99,))
    assert not transfer.quiet
    transfer.notified(0)
    assert (transfer.end, transfer.quiet, transfer.settled) == (EndReason.DELIVERED, True, True)


def test_a_delivery_is_sent_again_until_it_is_acknowledged() -> None:
    transfer = sent()
    assert (transfer.end, transfer.quiet) == (None, False)  # the source blocks stay pinned
    assert transfer.advance(RESEND_S - 0.001) is None
    copies, now = [], 0.0
    while now < 60:
        now += 0.05
        if isinstance(transfer.advance(now), Notify):
            copies.append(now)
            transfer.notified(now)
    gaps = [later - earlier for earlier, later in pairwise([0.0, *copies])]
    assert gaps[0] == pytest.approx(RESEND_S, abs=0.06)
    assert gaps[1] == pytest.approx(2 * RESEND_S, abs=0.06)
    assert max(gaps) == pytest.approx(LONGEST_RESEND_S, abs=0.06)
    assert transfer.receipt(None)
    assert (transfer.end, transfer.quiet) == (EndReason.DELIVERED, True)
    assert transfer.advance(now) is None
    transfer.check()


def test_it_keeps_nobody_awake_while_the_peer_does_not_answer() -> None:
    transfer = sent()
    assert transfer.busy  # a receipt usually comes within a millisecond
    transfer.advance(1.0)
    transfer.notified(1.0)
    assert not transfer.busy


def test_decode_may_decline() -> None:
    transfer = sent()
    assert transfer.receipt(Refusal.DAMAGED)
    assert (transfer.end, transfer.refusal, transfer.quiet) == (EndReason.REFUSED, Refusal.DAMAGED, True)
    assert transfer.receipt(None)  # a late copy of another answer changes nothing
    assert transfer.end is EndReason.REFUSED
    transfer.check()


def test_no_receipt_by_the_deadline() -> None:
    transfer = sent(deadline=5.0)
    assert transfer.advance(5.0) is None
    assert (transfer.end, transfer.quiet, transfer.settled) == (EndReason.UNACKNOWLEDGED, True, True)


def test_a_receipt_for_what_was_never_sent_is_not_believed() -> None:
    transfer = outgoing(acknowledged=True)
    transfer.ready(2, [5], last=False)
    assert not transfer.receipt(None)
    assert transfer.end is None


def test_a_prompt_that_is_all_cached_is_only_announced() -> None:
    transfer = outgoing(slots=[])
    transfer.ready(2, [], last=True, first_tokens=[1])
    assert transfer.advance(0) == Notify((), (), (1,))


def test_long_prompts_are_written_in_pieces() -> None:
    count = MAX_BLOCKS_PER_WRITE * (MAX_WRITES_IN_FLIGHT + 1)
    transfer = outgoing([Slot(block, 0) for block in range(count)], first_block=0)
    transfer.ready(0, list(range(count)), last=True)
    posts = [transfer.advance(0) for _ in range(MAX_WRITES_IN_FLIGHT + 1)]
    assert [len(post.pairs) for post in posts[:-1] if isinstance(post, Post)] == [
        MAX_BLOCKS_PER_WRITE
    ] * MAX_WRITES_IN_FLIGHT
    assert posts[-1] is None
    transfer.write_done(0, [0] * MAX_BLOCKS_PER_WRITE)
    assert isinstance(transfer.advance(0), Post)


def test_an_abort_posts_nothing_more_and_waits_for_what_flies() -> None:
    transfer = outgoing()
    transfer.ready(2, [5], last=False)
    transfer.advance(0)
    transfer.ready(3, [6, 7], last=True)
    transfer.abort()
    assert transfer.advance(0) is None
    assert not transfer.quiet
    transfer.write_done(0, [1])
    assert transfer.quiet
    assert transfer.advance(0) is None
    assert transfer.end is EndReason.ABORTED


def test_nothing_is_posted_from_the_deadline_on() -> None:
    transfer = outgoing(deadline=5.0)
    transfer.ready(2, [5, 6, 7], last=True)
    assert transfer.advance(5.0) is None
    assert (transfer.end, transfer.quiet) == (EndReason.EXPIRED, True)


def test_a_failed_write_ends_it_and_the_others_are_waited_for() -> None:
    transfer = outgoing()
    for index in range(3):
        transfer.ready(2 + index, [index], last=index == 2)
        transfer.advance(0)
    transfer.write_failed(1)
    transfer.write_done(0, [1])
    assert not transfer.quiet
    transfer.write_done(2, [1])
    assert (transfer.end, transfer.quiet) == (EndReason.WRITE_FAILED, True)
    assert not transfer.settled  # what became of the failed write's bytes nobody knows


@pytest.mark.parametrize("in_flight", [False, True])
def test_a_lost_peer_makes_it_quiet(in_flight: bool) -> None:
    transfer = outgoing()
    transfer.ready(2, [5], last=False)
    transfer.advance(0)
    if not in_flight:
        transfer.write_done(0, [1])
    transfer.peer_lost()
    assert (transfer.end, transfer.quiet, transfer.settled) == (EndReason.PEER_LOST, True, True)


@pytest.mark.parametrize(
    ("first_index", "blocks", "last"),
    [(3, [5], False), (1, [5], False), (2, [1, 2, 3, 4], False), (2, [1], True)],
)
def test_blocks_that_do_not_fit_the_ticket_end_it(first_index: int, blocks: list[int], last: bool) -> None:
    transfer = outgoing()
    transfer.ready(first_index, blocks, last)
    assert transfer.advance(0) is None
    assert (transfer.end, transfer.quiet) == (EndReason.BROKEN, True)


class OutgoingMachine(RuleBasedStateMachine):
    """A shell that does what it is told, in any order of events, against a peer that remembers what was written."""

    def __init__(self) -> None:
        super().__init__()
        self.slots = [Slot(100 + index, 0) for index in range(40)]
        self.now = 0.0
        self.num_ready = 0
        self.flying: dict[int, Post] = {}
        self.written: dict[int, int] = {}  # remote block -> local block
        self.ended = self.failed = False
        self.copies = 0

    @initialize(acknowledged=st.booleans())
    def begin(self, acknowledged: bool) -> None:
        self.acknowledged = acknowledged
        self.transfer = OutgoingTransfer("t", self.slots, 0, deadline=1_000.0, acknowledged=acknowledged)

    @precondition(lambda self: self.num_ready < 40)
    @rule(count=st.integers(0, 40))
    def ready(self, count: int) -> None:
        count = min(count, 40 - self.num_ready)
        last = self.num_ready + count == 40
        blocks = list(range(self.num_ready, self.num_ready + count))
        self.transfer.ready(self.num_ready, blocks, last, [7] if last else [])
        self.num_ready += count

    @rule()
    def advance(self) -> None:
        instruction = self.transfer.advance(self.now)
        if instruction is None:
            return
        assert not self.ended, "posted after the end"
        assert self.now < 1_000.0
        if isinstance(instruction, Post):
            assert not self.copies
            assert instruction.first_index == instruction.pairs[0][0]
            self.flying[instruction.write_id] = instruction
        else:
            assert not self.flying
            assert self.written == {slot.block: index for index, slot in enumerate(self.slots)}
            assert instruction.checksums == tuple(range(40))
            assert instruction.first_tokens == (7,)
            self.copies += 1
            self.transfer.notified(self.now)
            self.ended = not self.acknowledged

    @rule(seconds=st.sampled_from([0.01, 0.3, 3.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: self.flying)
    @rule(data=st.data(), works=st.integers(0, 9))
    def write_ends(self, data: st.DataObject, works: int) -> None:
        post = self.flying.pop(data.draw(st.sampled_from(sorted(self.flying))))
        if works:
            self.written |= {remote: local for local, remote in post.pairs}
            self.transfer.write_done(post.write_id, [local for local, _ in post.pairs])
        else:
            self.transfer.write_failed(post.write_id)
            self.ended = self.failed = True

    @rule(refusal=st.sampled_from([None, Refusal.DAMAGED, Refusal.UNKNOWN_TRANSFER]))
    def receipt(self, refusal: Refusal | None) -> None:
        assert self.transfer.receipt(refusal) == (self.copies > 0)
        self.ended = self.ended or self.copies > 0

    @precondition(lambda self: self.num_ready > 10)
    @rule(kind=st.sampled_from(["abort", "lost", "late"]))
    def end(self, kind: str) -> None:
        if kind == "abort":
            self.transfer.abort()
        elif kind == "lost":
            self.transfer.peer_lost()
            self.flying.clear()
        else:
            self.now = 1_000.0
            self.transfer.advance(self.now)
        self.ended = True

    @invariant()
    def consistent(self) -> None:
        self.transfer.check()
        assert (self.transfer.end is not None) == self.ended
        assert self.transfer.quiet == (self.ended and not self.flying)
        assert self.transfer.settled == (not self.failed)
        assert set(self.transfer.writes_in_flight) == set(self.flying)


TestOutgoingMachine = OutgoingMachine.TestCase
