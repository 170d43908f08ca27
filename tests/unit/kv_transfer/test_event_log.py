"""What a worker's log is to hold, by itself: batches, snapshots, digests, trimming and fencing."""

from __future__ import annotations

import os

import hypothesis.strategies as st
import msgspec
from hypothesis import given

from diptych.engine.interface import CacheEvent
from kv_transfer.event_log import EventLog, Write
from kv_transfer.schema import EventBatch, Snapshot, digest_of, index_keys, read_keys

HASHES = [bytes([2 * index]) * 16 for index in range(10)]


def stored(*hashes: bytes) -> CacheEvent:
    return CacheEvent(stored=hashes)


def taken(log: EventLog) -> Write:
    write = log.next_write()
    assert write is not None
    assert log.next_write() is write  # the same until it is written
    log.written()
    return write


def batch_of(write: Write) -> EventBatch:
    return msgspec.msgpack.decode(write.batch, type=EventBatch)


def snapshot_of(write: Write) -> Snapshot:
    return msgspec.msgpack.decode(write.snapshot, type=Snapshot)


def keys_in(snapshot: Snapshot) -> set[int]:
    return set(read_keys(snapshot.keys).tolist())


def keys_of(*hashes: bytes) -> set[int]:
    return set(index_keys(hashes).tolist())


def test_it_begins_with_a_snapshot_and_goes_on_with_batches() -> None:
    log = EventLog()
    log.publish(stored(*HASHES[:3]), 1.0)
    start = taken(log)
    assert (start.stream_id, start.after, start.trim_before) == ("1-1", "", "1-1")
    assert keys_in(snapshot_of(start)) == keys_of(*HASHES[:3])
    assert batch_of(start) == EventBatch(1, 1, [], digest_of(index_keys(HASHES[:3])))
    assert log.next_write() is None
    assert not log.has_news

    log.publish(stored(HASHES[3]), 2.0)
    log.publish(CacheEvent(removed=(HASHES[0], HASHES[9])), 3.0)
    write = taken(log)
    assert (write.stream_id, write.after, write.snapshot) == ("1-2", "1-1", b"")
    batch = batch_of(write)
    assert batch.made_at == 2.0
    assert [len(event.stored) + len(event.removed) for event in batch.events] == [8, 16]
    assert batch.digest == digest_of(index_keys(HASHES[1:4])) == log.digest


def test_what_happens_while_a_write_is_on_its_way_waits_for_the_next() -> None:
    log = EventLog()
    first = log.next_write()
    log.publish(stored(HASHES[0]), 1.0)
    assert log.next_write() is first
    log.written()
    assert batch_of(taken(log)).digest == digest_of(index_keys(HASHES[:1]))


def test_a_queue_that_overflows_becomes_a_new_epoch() -> None:
    log = EventLog(max_queued=4)
    taken(log)
    assert log.publish(stored(HASHES[0]), 0.0)
    assert log.publish(stored(HASHES[1]), 0.0)
    assert not log.publish(stored(HASHES[2]), 0.0)
    assert log.publish(stored(HASHES[3]), 0.0)  # the coming snapshot has it
    assert log.num_queued == 0
    write = taken(log)
    assert write.stream_id == "2-1"
    assert keys_in(snapshot_of(write)) == keys_of(*HASHES[:4])
    assert log.overflows_total == 1


def test_a_fence_rises_above_what_redis_remembers() -> None:
    log = EventLog()
    taken(log)
    log.fence(at_least=7)
    assert taken(log).stream_id == "8-1"


def test_a_snapshot_is_due_by_batches_or_by_bytes() -> None:
    log = EventLog(snapshot_every=3, snapshot_bytes=400)
    taken(log)
    due = []
    for number in range(9):
        log.publish(stored(os.urandom(16)), 0.0)
        due.append(bool(taken(log).snapshot))
        assert log.sequence == number + 2
    assert due == [False, False, True] * 3
    log.publish(stored(*(os.urandom(16) for _ in range(60))), 0.0)
    write = taken(log)  # larger than the limit, but not than what the cache holds
    assert write.snapshot == b""
    log.publish(CacheEvent(cleared=True), 0.0)
    assert snapshot_of(taken(log)) == Snapshot(1, log.sequence, b"")


changes = st.lists(
    st.tuples(
        st.lists(st.sampled_from(HASHES), max_size=4), st.lists(st.sampled_from(HASHES), max_size=4), st.booleans()
    ),
    max_size=40,
)


@given(changes)
def test_trimming_never_takes_what_follows_the_snapshot_before_last(
    done: list[tuple[list[bytes], list[bytes], bool]],
) -> None:
    log = EventLog(max_queued=100, snapshot_every=3)
    stream: list[Write] = []
    snapshots: list[Snapshot] = []
    held: set[bytes] = set()
    for add, remove, cleared in done:
        held = ((set() if cleared else held) - set(remove)) | set(add)
        log.publish(CacheEvent(stored=tuple(add), removed=tuple(remove), cleared=cleared), 0.0)
        write = taken(log)
        stream.append(write)
        if write.snapshot:
            snapshots.append(snapshot_of(write))
        if write.trim_before:
            stream = [each for each in stream if order(each.stream_id) >= order(write.trim_before)]
        assert batch_of(write).digest == digest_of(index_keys(held))
        for snapshot in snapshots[-2:]:
            follow = [order(each.stream_id)[1] for each in stream if order(each.stream_id)[1] > snapshot.sequence]
            assert follow == list(range(snapshot.sequence + 1, log.sequence + 1))
        if write.snapshot and snapshots[-1].sequence:
            assert keys_in(snapshots[-1]) == keys_of(*held)
    assert len(stream) <= 2 * 3 + 1


def order(stream_id: str) -> tuple[int, int]:
    epoch, sequence = stream_id.split("-")
    return int(epoch), int(sequence)
