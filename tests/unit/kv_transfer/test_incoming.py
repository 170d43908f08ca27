"""Decode's side of a transfer: what ends a promise, and what does not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diptych.messages import Delivery, Slot, Written
from kv_transfer.incoming import IncomingEnd, IncomingTransfer, Refusal

SLOTS = [Slot(10, 1), Slot(11, 1), Slot(12, 4)]


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
    assert (transfer.end, transfer.accepted) == (None, False)
    assert transfer.accept(delivery(), "prefill-1") is None
    assert (transfer.end, transfer.accepted) == (IncomingEnd.ACCEPTED, True)
    assert transfer.accept(delivery(), "prefill-1") is Refusal.DUPLICATE
    assert transfer.accept(delivery(slots=[]), "prefill-1") is Refusal.DUPLICATE
    transfer.check()


@pytest.mark.parametrize(
    ("changes", "sender", "reason"),
    [
        ({"transfer_id": "u"}, "prefill-1", Refusal.UNKNOWN_TRANSFER),
        ({"decode_id": "decode-0"}, "prefill-1", Refusal.WRONG_DECODE),
        ({"prefill_id": "prefill-0"}, "prefill-1", Refusal.WRONG_PREFILL),
        ({"prefill_id": "prefill-2"}, "prefill-2", Refusal.WRONG_PREFILL),
        ({}, "prefill-2", Refusal.WRONG_PREFILL),
    ],
)
def test_what_strangers_say_is_refused_and_the_right_delivery_still_welcome(
    changes: dict[str, object], sender: str, reason: Refusal
) -> None:
    transfer = incoming()
    assert transfer.accept(delivery(**changes), sender) is reason
    assert not reason.ends_the_promise
    assert not reason.writes_over
    assert transfer.end is None
    assert transfer.accept(delivery(), "prefill-1") is None


@pytest.mark.parametrize(
    ("changes", "reason", "writes_over"),
    [
        ({"slots": SLOTS[:2]}, Refusal.WRONG_SLOTS, False),
        ({"slots": SLOTS[::-1]}, Refusal.WRONG_SLOTS, False),
        ({"slots": [*SLOTS[:2], Slot(12, 3)]}, Refusal.WRONG_SLOTS, False),  # another generation
        ({"checksums": [1, 2]}, Refusal.WRONG_CHECKSUMS, True),
        ({"checksums": [1, 2, 3, 4]}, Refusal.WRONG_CHECKSUMS, True),
        ({"checksums": [1, None, 3]}, Refusal.TOO_FEW_CHECKSUMS, True),
        ({"first_tokens": []}, Refusal.WRONG_CHOICES, True),
    ],
)
def test_what_the_promised_peer_says_wrong_ends_the_promise(
    changes: dict[str, object], reason: Refusal, writes_over: bool
) -> None:
    transfer = incoming()
    assert transfer.accept(delivery(**changes), "prefill-1", min_checked=3) is reason
    assert (transfer.end, transfer.refusal) == (IncomingEnd.REFUSED, reason)
    assert reason.ends_the_promise
    assert reason.writes_over is writes_over
    assert transfer.accept(delivery(), "prefill-1") is Refusal.DUPLICATE  # decode has gone on without it
    transfer.check()


def test_a_checksum_of_zero_is_a_checksum() -> None:
    assert incoming().accept(delivery(checksums=[0, 0, 0]), "prefill-1", min_checked=3) is None
    assert incoming().accept(delivery(checksums=[None] * 3), "prefill-1", min_checked=1) is Refusal.TOO_FEW_CHECKSUMS
    assert incoming().accept(delivery(checksums=[None] * 3), "prefill-1", min_checked=0) is None


def test_damaged_bytes_end_an_accepted_one() -> None:
    transfer = incoming()
    with pytest.raises(RuntimeError):
        transfer.damaged()
    transfer.accept(delivery(), "prefill-1")
    transfer.damaged()
    assert (transfer.end, transfer.refusal, transfer.accepted) == (IncomingEnd.DAMAGED, Refusal.DAMAGED, False)
    assert transfer.accept(delivery(), "prefill-1") is Refusal.DUPLICATE
    transfer.check()


@pytest.mark.parametrize("end", [IncomingEnd.FORGOTTEN, IncomingEnd.EXPIRED, IncomingEnd.PEER_LOST])
def test_what_was_given_up_accepts_nothing_any_more(end: IncomingEnd) -> None:
    transfer = incoming()
    transfer.give_up(end)
    transfer.give_up(IncomingEnd.FORGOTTEN)
    assert transfer.end is end
    assert transfer.accept(delivery(), "prefill-1") is Refusal.UNKNOWN_TRANSFER
    assert transfer.accept(delivery(slots=[]), "prefill-1") is Refusal.UNKNOWN_TRANSFER
    transfer.check()


def variants(field: str, *wrong: object) -> st.SearchStrategy[tuple[str, object]]:
    return st.sampled_from([(field, each) for each in wrong])


@given(
    changes=st.lists(
        variants("transfer_id", "u", "")
        | variants("decode_id", "decode-0")
        | variants("prefill_id", "prefill-2")
        | variants("slots", [], SLOTS[1:], [Slot(10, 2), *SLOTS[1:]])
        | variants("checksums", [], [None] * 3, [1, 2])
        | variants("first_tokens", [], [1, 2]),
        max_size=6,
    ),
    sender=st.sampled_from(["prefill-1", "prefill-1", "prefill-2"]),
    tries=st.integers(1, 3),
)
def test_nothing_but_the_promised_delivery_is_ever_accepted(
    changes: list[tuple[str, object]], sender: str, tries: int
) -> None:
    transfer = incoming()
    right = not changes and sender == "prefill-1"
    for attempt in range(tries):
        refusal = transfer.accept(delivery(**dict(changes)), sender, min_checked=3)
        assert (refusal is None) == (right and attempt == 0)
        transfer.check()
    assert transfer.accepted == right


def written(**changes: object) -> Written:
    fields: dict[str, object] = {
        "transfer_id": "t",
        "decode_id": "decode-1",
        "prefill_id": "prefill-1",
        "first_index": 1,
        "slots": SLOTS[1:],
        "checksums": [2, 3],
    }
    return Written(**(fields | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "sender", "reason"),
    [
        ({}, "prefill-1", None),
        ({"slots": [], "checksums": []}, "prefill-1", None),
        ({"transfer_id": "u"}, "prefill-1", Refusal.UNKNOWN_TRANSFER),
        ({"decode_id": "decode-0"}, "prefill-1", Refusal.WRONG_DECODE),
        ({"prefill_id": "prefill-0"}, "prefill-1", Refusal.WRONG_PREFILL),
        ({}, "prefill-2", Refusal.WRONG_PREFILL),
        ({"first_index": 0}, "prefill-1", Refusal.WRONG_SLOTS),
        ({"first_index": -2}, "prefill-1", Refusal.WRONG_SLOTS),
        ({"slots": [SLOTS[1], Slot(12, 3)]}, "prefill-1", Refusal.WRONG_SLOTS),  # another generation
        ({"slots": [*SLOTS[1:], Slot(13, 1)]}, "prefill-1", Refusal.WRONG_SLOTS),
        ({"checksums": [2]}, "prefill-1", Refusal.WRONG_CHECKSUMS),
    ],
)
def test_an_early_word_is_checked_like_a_delivery_and_never_ends_the_promise(
    changes: dict[str, object], sender: str, reason: Refusal | None
) -> None:
    transfer = incoming()
    assert transfer.refuse_early(written(**changes), sender) is reason
    assert transfer.end is None
    assert transfer.accept(delivery(), "prefill-1") is None
    assert transfer.refuse_early(written(), "prefill-1") is Refusal.DUPLICATE
