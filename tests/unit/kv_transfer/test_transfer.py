"""The transfer state machines: examples, then every order of events hypothesis can think of."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from diptych.messages import Delivery, Slot
from kv_transfer.transfer import (
    MAX_BLOCKS_PER_WRITE,
    MAX_WRITES_IN_FLIGHT,
    EndReason,
    IncomingTransfer,
    Notify,
    OutgoingTransfer,
    Post,
    Refusal,
)

SLOTS = [Slot(10, 1), Slot(11, 1), Slot(12, 4)]


def outgoing(slots: list[Slot] = SLOTS, first_block: int = 2, deadline: float = 100.0) -> OutgoingTransfer:
    return OutgoingTransfer("t", slots, first_block, deadline)


def test_blocks_are_written_as_they_become_ready_and_announced_at_the_end() -> None:
    transfer = outgoing()
    transfer.ready(2, [5], last=False)
    assert transfer.advance(0) == Post(0, ((5, 10),))
    transfer.ready(3, [6, 7], last=True, first_tokens=[99])
    assert transfer.advance(0) == Post(1, ((6, 11), (7, 12)))
    assert transfer.advance(0) is None
    transfer.write_done(1, [102, 103])
    assert transfer.advance(0) is None  # the first write is still in flight
    transfer.write_done(0, [101])
    assert transfer.advance(0) == Notify(tuple(SLOTS), (101, 102, 103), (99,))
    assert not transfer.quiet
    transfer.notified()
    assert (transfer.end, transfer.quiet) == (EndReason.DELIVERED, True)


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


def test_a_lost_peer_makes_it_quiet() -> None:
    transfer = outgoing()
    transfer.ready(2, [5], last=False)
    transfer.advance(0)
    transfer.peer_lost()
    assert (transfer.end, transfer.quiet) == (EndReason.PEER_LOST, True)


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
        self.transfer = OutgoingTransfer("t", self.slots, 0, deadline=1_000.0)
        self.now = 0.0
        self.num_ready = 0
        self.flying: dict[int, Post] = {}
        self.written: dict[int, int] = {}  # remote block -> local block
        self.ended = False
        self.notified = False

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
        if isinstance(instruction, Post):
            assert self.now < 1_000.0
            self.flying[instruction.write_id] = instruction
        else:
            assert not self.flying
            assert self.written == {slot.block: index for index, slot in enumerate(self.slots)}
            assert instruction.checksums == tuple(range(40))
            assert instruction.first_tokens == (7,)
            assert not self.notified
            self.notified = True
            self.transfer.notified()
            self.ended = True

    @precondition(lambda self: self.flying)
    @rule(data=st.data(), works=st.integers(0, 9))
    def write_ends(self, data: st.DataObject, works: int) -> None:
        post = self.flying.pop(data.draw(st.sampled_from(sorted(self.flying))))
        if works:
            self.written |= {remote: local for local, remote in post.pairs}
            self.transfer.write_done(post.write_id, [local for local, _ in post.pairs])
        else:
            self.transfer.write_failed(post.write_id)
            self.ended = True

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
        assert set(self.transfer.writes_in_flight) == set(self.flying)


TestOutgoingMachine = OutgoingMachine.TestCase


def delivery(**changes: object) -> Delivery:
    fields: dict[str, object] = {
        "transfer_id": "t",
        "decode_id": "decode-1",
        "prefill_id": "prefill-1",
        "slots": list(SLOTS),
        "checksums": [1, 2, 3],
        "first_tokens": [9],
        "first_post_ms": 1.0,
        "last_token_ms": 1.0,
    }
    return Delivery(**(fields | changes))  # type: ignore[arg-type]


def incoming() -> IncomingTransfer:
    return IncomingTransfer("t", "decode-1", "prefill-1", SLOTS, num_choices=1)


def test_the_promised_delivery_is_accepted_once() -> None:
    transfer = incoming()
    assert transfer.accept(delivery(), "prefill-1") is None
    assert transfer.accepted
    assert transfer.accept(delivery(), "prefill-1") is Refusal.DUPLICATE


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"transfer_id": "u"}, Refusal.UNKNOWN_TRANSFER),
        ({"decode_id": "decode-0"}, Refusal.WRONG_DECODE),
        ({"prefill_id": "prefill-0"}, Refusal.WRONG_PREFILL),
        ({"slots": SLOTS[:2]}, Refusal.WRONG_SLOTS),
        ({"slots": SLOTS[::-1]}, Refusal.WRONG_SLOTS),
        ({"slots": [*SLOTS[:2], Slot(12, 3)]}, Refusal.WRONG_SLOTS),
        ({"checksums": [1, 2]}, Refusal.WRONG_CHECKSUMS),
        ({"first_tokens": []}, Refusal.WRONG_CHOICES),
    ],
)
def test_any_other_delivery_is_refused_and_the_right_one_still_welcome(
    changes: dict[str, object], reason: Refusal
) -> None:
    transfer = incoming()
    assert transfer.accept(delivery(**changes), "prefill-1") is reason
    assert not transfer.accepted
    assert transfer.accept(delivery(), "prefill-1") is None


def test_a_delivery_in_anothers_name_is_refused() -> None:
    assert incoming().accept(delivery(), "prefill-2") is Refusal.WRONG_PREFILL
