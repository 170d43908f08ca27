"""What happens around a delivery: lost, late, copied, forged, refused, unchecked. Two pumps, fake agents, no time."""

from __future__ import annotations

import msgspec
import pytest
from transfer_pair import ALL, SLOTS, Pair

from diptych.messages import Delivery, Receipt, Slot
from kv_transfer.checksum import NO_CHECKS, Checks, Pool
from kv_transfer.incoming import IncomingEnd, IncomingTransfer, Refusal
from kv_transfer.notification import seal, unseal
from kv_transfer.outcome import Missed, Pushed
from kv_transfer.pump import IDLE_POLL_S, POLL_S
from kv_transfer.transfer import EndReason


@pytest.fixture
def pair() -> Pair:
    return Pair(acknowledged=True)


def altered(**changes: object) -> Delivery:
    fields: dict[str, object] = {
        "transfer_id": "t",
        "decode_id": "decode",
        "prefill_id": "prefill",
        "slots": SLOTS,
        "checksums": [0, 0, 0],
        "first_tokens": [7],
        "first_post_ms": 0.0,
        "last_token_ms": 0.0,
    }
    return Delivery(**(fields | changes))  # type: ignore[arg-type]


def ends(pair: Pair) -> list[EndReason]:
    return [pushed.end for pushed in pair.prefill.ended]


def test_delivered_means_acknowledged(pair: Pair) -> None:
    pair.decode.agent.faults.hold_notifications = True
    pair.begin()
    pair.step(50)
    assert ends(pair) == []  # the source blocks stay pinned
    pair.decode.agent.faults.hold_notifications = False
    pair.step()
    assert ends(pair) == [EndReason.DELIVERED]
    assert pair.prefill.ended[0].handed_over
    assert len(pair.decode.arrivals) == 1
    assert pair.prefill.pump.counters.deliveries_resent_total == 0
    assert pair.prefill.pump.counters.outgoing == {EndReason.DELIVERED: 1}
    assert pair.decode.pump.counters.incoming == {IncomingEnd.ACCEPTED: 1}


def test_a_lost_delivery_is_sent_again(pair: Pair) -> None:
    pair.faults.lose_notifications = True
    pair.begin()
    pair.step()
    assert pair.decode.arrivals == []
    pair.faults.lose_notifications = False
    pair.step(300)
    assert (len(pair.decode.arrivals), ends(pair)) == (1, [EndReason.DELIVERED])
    assert pair.prefill.pump.counters.deliveries_resent_total == 1


def test_a_lost_receipt_is_sent_again_even_when_the_transfer_is_forgotten(pair: Pair) -> None:
    pair.decode.agent.faults.lose_notifications = True
    pair.begin()
    pair.step()
    pair.decode.pump.receiver.forget("t")
    pair.decode.agent.faults.lose_notifications = False
    pair.step(300)
    assert (len(pair.decode.arrivals), ends(pair)) == (1, [EndReason.DELIVERED])
    assert pair.decode.pump.counters.refused == {Refusal.DUPLICATE: 1}


def test_an_answer_is_the_same_for_every_copy(pair: Pair) -> None:
    pair.faults.flip_bit = True
    pair.decode.agent.faults.lose_notifications = True
    pair.begin()
    pair.step()
    pair.decode.agent.faults.lose_notifications = False
    pair.step(300)
    (arrival,) = pair.decode.arrivals
    assert arrival.bad_blocks == (4, 2, 6)
    (pushed,) = pair.prefill.ended
    assert (pushed.end, pushed.refusal, pushed.handed_over) == (EndReason.REFUSED, Refusal.DAMAGED, True)
    assert pair.decode.pump.counters.incoming == {IncomingEnd.DAMAGED: 1}


def test_copies_of_deliveries_and_receipts_change_nothing(pair: Pair) -> None:
    pair.faults.duplicate_notifications = pair.decode.agent.faults.duplicate_notifications = True
    pair.begin()
    pair.step()
    assert (len(pair.decode.arrivals), ends(pair)) == (1, [EndReason.DELIVERED])
    assert pair.decode.pump.counters.refused == {Refusal.DUPLICATE: 1}
    pair.decode.pump.receiver.receive("prefill", pair.decode.arrivals[0].delivery)
    pair.prefill.pump.pusher.receipt("decode", Receipt(transfer_id="t", decode_id="decode", prefill_id="prefill"))
    pair.step()
    assert (len(pair.decode.arrivals), ends(pair)) == (1, [EndReason.DELIVERED])
    assert pair.decode.pump.counters.refused == {Refusal.DUPLICATE: 2}
    assert pair.prefill.pump.counters.refused == {Refusal.DUPLICATE: 1}


def test_without_an_answer_the_deadline_ends_it(pair: Pair) -> None:
    pair.decode.agent.faults.lose_notifications = True
    pair.begin()
    pair.step(1_010)
    (pushed,) = pair.prefill.ended
    assert (pushed.end, pushed.handed_over, pushed.settled) == (EndReason.UNACKNOWLEDGED, False, True)


def test_a_silent_peer_keeps_nobody_awake(pair: Pair) -> None:
    pair.decode.agent.faults.hold_notifications = True
    pair.begin()
    pair.step()
    pair.now = 100.0  # long after they met
    pair.begin()
    pair.prefill.pump.pusher.abort("t", lambda pushed: None)
    pair.step(1)
    assert pair.prefill.pump.wait_s() == IDLE_POLL_S
    assert pair.decode.pump.wait_s() == POLL_S


def test_a_forgotten_transfer_is_declined(pair: Pair) -> None:
    pair.begin(ready=False)
    pair.decode.pump.receiver.forget("t", IncomingEnd.EXPIRED)
    pair.prefill.pump.pusher.ready("t", 0, [0, 1, 2], True, [7], pair.now)
    pair.step()
    (pushed,) = pair.prefill.ended
    assert (pushed.end, pushed.refusal, pushed.handed_over) == (EndReason.REFUSED, Refusal.UNKNOWN_TRANSFER, False)
    assert pair.decode.pump.counters.incoming == {IncomingEnd.EXPIRED: 1}
    assert pair.decode.missed == []


def test_a_receiver_that_has_not_met_the_pusher_still_receives() -> None:
    pair = Pair(acknowledged=True)
    pair.decode.agent.remove_peer("prefill")
    pair.begin()
    pair.step(1_010)
    assert (len(pair.decode.arrivals), ends(pair)) == (1, [EndReason.UNACKNOWLEDGED])


def test_a_pusher_that_died_after_its_delivery_has_delivered(pair: Pair) -> None:
    pair.begin()
    pair.prefill.pump.step()
    pair.prefill.pump.step()
    pair.prefill.agent.close()
    pair.decode.pump.lose_peer("prefill")  # takes in first what is here
    assert len(pair.decode.arrivals) == 1
    assert pair.decode.missed == []


def test_a_pusher_that_died_before_is_missed_at_once(pair: Pair) -> None:
    pair.begin(ready=False)
    pair.prefill.agent.close()
    pair.decode.pump.lose_peer("prefill")
    assert pair.decode.missed == [Missed("t", IncomingEnd.PEER_LOST)]
    assert pair.decode.missed[0].writes_over
    assert not pair.decode.pump.receiver.active
    pair.decode.pump.lose_peer("prefill")
    assert len(pair.decode.missed) == 1


def test_bytes_of_a_dead_peer_land_before_it_counts_as_lost(pair: Pair) -> None:
    pair.faults.never_complete = pair.faults.land_after_death = True
    pair.begin()
    pair.step()
    pair.prefill.agent.close()
    pair.decode.pump.lose_peer("prefill")
    pair.decode.pool[:] = 0  # reused by others
    pair.decode.pump.step()
    assert not pair.decode.pool.any()


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"transfer_id": "u"}, Refusal.UNKNOWN_TRANSFER),
        ({"transfer_id": "u", "decode_id": "decode-0"}, Refusal.WRONG_DECODE),
        ({"transfer_id": "u", "prefill_id": "prefill-0"}, Refusal.WRONG_PREFILL),
        ({"decode_id": "decode-0"}, Refusal.WRONG_DECODE),
        ({"prefill_id": "prefill-0"}, Refusal.WRONG_PREFILL),
    ],
)
def test_what_fits_no_promise_is_counted_and_changes_nothing(
    pair: Pair, changes: dict[str, object], reason: Refusal
) -> None:
    pair.begin(ready=False)
    pair.prefill.agent.send_notification("decode", seal(altered(**changes)))
    pair.step()
    assert pair.decode.pump.counters.refused == {reason: 1}
    assert (pair.decode.arrivals, pair.decode.missed) == ([], [])
    pair.prefill.pump.pusher.ready("t", 0, [0, 1, 2], True, [7], pair.now)
    pair.step()
    assert len(pair.decode.arrivals) == 1


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"slots": [Slot(10**6, 1)]}, Refusal.WRONG_SLOTS),
        ({"slots": SLOTS[::-1]}, Refusal.WRONG_SLOTS),
        ({"slots": [*SLOTS[:2], Slot(6, 8)]}, Refusal.WRONG_SLOTS),
        ({"checksums": [1]}, Refusal.WRONG_CHECKSUMS),
        ({"checksums": [1, 2, None]}, Refusal.TOO_FEW_CHECKSUMS),
        ({"first_tokens": [1, 2]}, Refusal.WRONG_CHOICES),
    ],
)
def test_decode_hears_at_once_that_the_promised_peer_failed(
    pair: Pair, changes: dict[str, object], reason: Refusal
) -> None:
    pair.begin(ready=False)
    wrong = altered(**changes)
    pair.prefill.agent.send_notification("decode", seal(wrong))
    pair.step()
    assert pair.decode.missed == [Missed("t", IncomingEnd.REFUSED, reason, wrong)]
    assert pair.decode.missed[0].writes_over is reason.writes_over
    assert pair.decode.pump.counters.refused == {reason: 1}
    assert pair.decode.pump.counters.incoming == {IncomingEnd.REFUSED: 1}

    pair.prefill.pump.pusher.ready("t", 0, [0, 1, 2], True, [7], pair.now)
    pair.step()
    assert pair.decode.arrivals == []
    (pushed,) = pair.prefill.ended
    assert (pushed.end, pushed.refusal, pushed.handed_over) == (EndReason.REFUSED, reason, True)


def test_a_delivery_in_anothers_name_is_refused(pair: Pair) -> None:
    pair.begin(ready=False)
    pair.decode.pump.receiver.receive("prefill-2", altered())
    assert pair.decode.pump.counters.refused == {Refusal.WRONG_PREFILL: 1}
    assert pair.decode.pump.receiver.active


@pytest.mark.parametrize("payload", [b"", b"\xc1", b"x" * 100, seal(altered())[:-1], seal(altered())[1:]])
def test_nonsense_is_counted_and_changes_nothing(pair: Pair, payload: bytes) -> None:
    pair.begin(ready=False)
    pair.prefill.agent.send_notification("decode", payload)
    pair.step()
    assert pair.decode.pump.counters.refused == {Refusal.MALFORMED: 1}
    assert (pair.decode.arrivals, pair.decode.missed) == ([], [])
    assert pair.decode.pump.receiver.active


def test_an_altered_delivery_is_followed_by_a_right_one(pair: Pair) -> None:
    def alter(payload: bytes) -> list[bytes]:
        pair.faults.alter_notification = None
        return [payload[:-1] + bytes([payload[-1] ^ 1])]

    pair.faults.alter_notification = alter
    pair.begin()
    pair.step(300)
    assert pair.decode.pump.counters.refused == {Refusal.MALFORMED: 1}
    assert (len(pair.decode.arrivals), ends(pair)) == (1, [EndReason.DELIVERED])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"transfer_id": "u"}, Refusal.UNKNOWN_TRANSFER),
        ({"decode_id": "decode-0"}, Refusal.WRONG_DECODE),
        ({"prefill_id": "prefill-0"}, Refusal.WRONG_PREFILL),
        ({"refusal": "because"}, Refusal.MALFORMED),
        ({}, Refusal.UNKNOWN_TRANSFER),  # nothing was delivered yet
    ],
)
def test_a_receipt_that_does_not_fit_is_counted_and_changes_nothing(
    pair: Pair, changes: dict[str, str], reason: Refusal
) -> None:
    pair.begin(ready=False)
    receipt = Receipt(transfer_id="t", decode_id="decode", prefill_id="prefill")
    pair.prefill.pump.pusher.receipt("decode", msgspec.structs.replace(receipt, **changes))
    pair.prefill.pump.pusher.receipt("decode-2", receipt)
    pair.step()
    assert pair.prefill.pump.counters.refused[reason] == 1 + (reason is Refusal.WRONG_DECODE)
    assert ends(pair) == []


# --- how much is checked --------------------------------------------------------------------------------------------


def test_a_sender_that_samples_says_what_it_sampled() -> None:
    pair = Pair(taken=Checks(0.4), demanded=Checks(0.4))
    payloads: list[Delivery | Receipt] = []

    def look(payload: bytes) -> list[bytes]:
        payloads.append(unseal(payload))
        return [payload]

    pair.faults.alter_notification = look
    pair.begin()
    pair.step()
    (arrival,), (delivery,) = pair.decode.arrivals, payloads
    assert isinstance(delivery, Delivery)
    assert sum(checksum is not None for checksum in delivery.checksums) == 2 == arrival.num_checked
    assert pair.decode.pump.counters.blocks_verified_total == 2


@pytest.mark.parametrize(
    ("taken", "demanded", "arrives"),
    [
        (ALL, ALL, True),
        (ALL, NO_CHECKS, True),
        (ALL, Checks(0.5), True),
        (NO_CHECKS, NO_CHECKS, True),
        (Checks(0.5), ALL, False),
        (NO_CHECKS, ALL, False),
        (NO_CHECKS, Checks(0.01), False),
    ],
)
def test_other_settings_are_no_false_alarm_and_no_silent_gap(taken: Checks, demanded: Checks, arrives: bool) -> None:
    pair = Pair(taken, demanded)
    pair.begin()
    pair.step()
    assert len(pair.decode.arrivals) == arrives
    assert all(arrival.bad_blocks == () for arrival in pair.decode.arrivals)
    assert pair.decode.pump.counters.refused == ({} if arrives else {Refusal.TOO_FEW_CHECKSUMS: 1})
    assert [missed.refusal for missed in pair.decode.missed] == [Refusal.TOO_FEW_CHECKSUMS] * (not arrives)


@pytest.mark.parametrize("demanded", [ALL, NO_CHECKS])
def test_whatever_is_demanded_what_was_checksummed_is_verified(demanded: Checks) -> None:
    pair = Pair(ALL, demanded)

    def cut(pool: Pool, pairs: object) -> None:
        pool[4, -8:] = 0  # only in the first block

    pair.faults.alter_write = cut
    pair.begin()
    pair.step()
    assert pair.decode.arrivals[0].bad_blocks == (4,)


def test_a_pool_nobody_can_read_is_neither_checksummed_nor_demanded() -> None:
    pair = Pair()
    incoming = IncomingTransfer("t", "decode", "prefill", SLOTS, num_choices=1)
    pair.decode.pump.receiver._pool, pair.decode.pump.receiver._checks = None, NO_CHECKS
    pair.decode.pump.receiver.expect(incoming)
    pair.decode.pump.receiver.receive("prefill", altered(checksums=[None] * 3))
    assert incoming.accepted
    assert pair.decode.arrivals[0].num_checked == 0


def test_an_unsettled_write_is_remembered_for_late_questions(pair: Pair) -> None:
    pair.faults.fail_posts = True
    pair.begin()
    pair.step()
    assert pair.prefill.ended == [Pushed(EndReason.WRITE_FAILED, settled=False)]
    assert [pair.aborted() for _ in range(2)] == [[Pushed(EndReason.ABORTED, settled=False)]] * 2


# --- verified before the delivery -----------------------------------------------------------------------------------


def half_way(pair: Pair) -> None:
    """Two of the three blocks are written; decode has heard of them."""
    pair.begin(ready=False)
    pair.prefill.pump.pusher.ready("t", 0, [0, 1], False, [], pair.now)
    pair.step()


def finish(pair: Pair) -> None:
    pair.prefill.pump.pusher.ready("t", 2, [2], True, [7], pair.now)
    pair.step()


def early(pair: Pair) -> int:
    return pair.decode.pump.counters.blocks_verified_early_total


def test_what_was_verified_while_prefill_computed_is_not_read_again(pair: Pair) -> None:
    half_way(pair)
    pair.decode.pool[SLOTS[0].block] ^= 1  # nobody looks any more; see `kv_transfer.incoming` why that is safe
    finish(pair)
    (arrival,) = pair.decode.arrivals
    assert arrival.bad_blocks == ()
    assert (early(pair), pair.decode.pump.counters.blocks_verified_total) == (2, 3)
    assert ends(pair) == [EndReason.DELIVERED]


def test_what_was_wrong_early_is_judged_with_the_delivery(pair: Pair) -> None:
    pair.faults.flip_bit = True
    half_way(pair)
    assert pair.decode.pump.counters.refused == {}
    finish(pair)
    assert pair.decode.arrivals[0].bad_blocks == (4, 2, 6)
    assert early(pair) == 0


def test_a_delivery_with_another_checksum_than_the_early_word_is_verified_anew(pair: Pair) -> None:
    half_way(pair)
    sums = [1, 2, 3]
    pair.prefill.agent.send_notification("decode", seal(altered(checksums=sums)))
    pair.step()
    assert pair.decode.arrivals[0].bad_blocks == (4, 2, 6)


def test_a_lost_early_word_costs_nothing_but_time(pair: Pair) -> None:
    pair.faults.lose_notifications = True
    half_way(pair)
    pair.faults.lose_notifications = False
    finish(pair)
    assert (len(pair.decode.arrivals), early(pair), ends(pair)) == (1, 0, [EndReason.DELIVERED])


def test_the_last_blocks_come_with_the_delivery_alone(pair: Pair) -> None:
    pair.begin()
    pair.step()
    assert (len(pair.decode.arrivals), early(pair)) == (1, 0)


def test_an_early_word_for_a_transfer_that_ended_is_ignored(pair: Pair) -> None:
    pair.begin(ready=False)
    pair.decode.pump.receiver.forget("t")
    pair.prefill.pump.pusher.ready("t", 0, [0, 1], False, [], pair.now)
    pair.step()
    assert pair.decode.pump.counters.refused == {}
