"""The index against a model that is nothing but sets."""

from __future__ import annotations

import os

import hypothesis.strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from kv_transfer.schema import (
    Digest,
    EventBatch,
    IndexEvent,
    Snapshot,
    digest_of,
    index_keys,
    join_hashes,
    read_keys,
)
from router.prefix_index import Accuracy, Applied, PrefixIndex

HASHES = [bytes([2 * index]) * 16 for index in range(12)]  # their index keys differ: the lowest bit is not told apart
WORKERS = ["w0", "w1", "w2"]
LASTS = 2  # seconds, of a guess
hash_lists = st.lists(st.sampled_from(HASHES), max_size=6)
change_lists = st.lists(st.tuples(st.booleans(), hash_lists, hash_lists), max_size=3)  # cleared, removed, stored


def stored(*hashes: bytes) -> IndexEvent:
    return IndexEvent(stored=join_hashes(hashes))


def index_of(**workers: list[bytes]) -> PrefixIndex:
    index = PrefixIndex()
    for worker_id, hashes in workers.items():
        index.add_worker(worker_id)
        index.load(worker_id, Snapshot(1, 0, join_hashes(hashes)))
    return index


def test_longest_prefix_for_each_worker() -> None:
    index = index_of(full=HASHES[:4], half=HASHES[:2], hole=[HASHES[0], HASHES[2]], none=HASHES[1:4])
    assert index.matches(HASHES[:4], 0.0) == {"full": 4, "half": 2, "hole": 1}
    assert index.matches(HASHES[:1], 0.0) == {"full": 1, "half": 1, "hole": 1}
    assert index.matches([], 0.0) == {}
    assert index.matches(HASHES[8:], 0.0) == {}


def test_batches_out_of_order_change_nothing() -> None:
    index = index_of(w=[])
    assert index.apply("w", EventBatch(1, 1, [stored(HASHES[0])])) is Applied.APPLIED
    assert index.apply("w", EventBatch(1, 1, [stored(HASHES[1])])) is Applied.DUPLICATE
    assert index.apply("w", EventBatch(1, 3, [stored(HASHES[1])])) is Applied.GAP
    assert index.apply("w", EventBatch(2, 1, [stored(HASHES[1])])) is Applied.GAP
    assert index.apply("w", EventBatch(0, 9, [stored(HASHES[1])])) is Applied.DUPLICATE
    assert index.apply("stranger", EventBatch(1, 1, [stored(HASHES[1])])) is Applied.UNKNOWN
    assert index.matches(HASHES[:2], 0.0) == {"w": 1}
    assert index.position("w") == (1, 1)


def test_a_snapshot_closes_a_gap_and_an_old_one_does_nothing() -> None:
    index = index_of(w=HASHES[:1])
    assert index.load("w", Snapshot(1, 7, join_hashes(HASHES[1:3]))) is Applied.APPLIED
    assert index.matches(HASHES[1:3], 0.0) == {"w": 2}
    assert index.matches(HASHES[:1], 0.0) == {}
    assert index.load("w", Snapshot(1, 6, join_hashes(HASHES))) is Applied.DUPLICATE
    assert index.apply("w", EventBatch(1, 8, [IndexEvent(cleared=True), stored(HASHES[0])])) is Applied.APPLIED
    assert index.matches(HASHES, 0.0) == {"w": 1}


def test_nothing_brings_back_a_worker_that_left() -> None:
    index = index_of(gone=HASHES[:4], here=HASHES[:1])
    index.guess("gone", HASHES, expires_at=50.0)
    index.drop_worker("gone")
    assert index.matches(HASHES, 0.0) == {"here": 1}
    assert index.apply("gone", EventBatch(1, 1, [stored(HASHES[0])])) is Applied.UNKNOWN
    assert index.load("gone", Snapshot(9, 9, b"")) is Applied.UNKNOWN
    index.guess("gone", HASHES, expires_at=60.0)
    index.add_worker("heir")  # must not inherit the bit while it is dirty
    assert index.matches(HASHES, 0.0) == {"here": 1}
    assert index.sweep(max_buckets=5)
    while index.sweep(max_buckets=5):
        assert index.matches(HASHES, 0.0) == {"here": 1}
    assert len(index) == 1
    index.add_worker("next")
    assert index.matches(HASHES, 0.0) == {"here": 1}
    index.check()


def test_a_table_that_grows_while_it_is_swept_is_swept_to_the_end() -> None:
    index = index_of(gone=HASHES, here=HASHES[:1])
    index.drop_worker("gone")
    assert index.sweep(max_buckets=15)  # all but one of the smallest table
    index.apply("here", EventBatch(1, 1, [IndexEvent(stored=os.urandom(8 * 4_000))]))
    while index.sweep(max_buckets=15):
        pass
    index.add_worker("heir")
    assert index.matches(HASHES, 0.0) == {"here": 1}
    index.check()


def test_more_workers_than_a_mask_has_bits() -> None:
    index = PrefixIndex()
    lengths = {f"w{number}": 1 + number % 12 for number in range(150)}
    for worker_id, length in lengths.items():
        index.add_worker(worker_id)
        index.load(worker_id, Snapshot(1, 0, join_hashes(HASHES[:length])))
    assert index.matches(HASHES, 0.0) == lengths
    for number in range(0, 150, 2):
        index.drop_worker(f"w{number}")
    for number in range(75):  # bits of those that left are cleaned up and used again
        index.add_worker(f"new{number}")
    assert index.matches(HASHES, 0.0) == {worker: n for worker, n in lengths.items() if int(worker[1:]) % 2}
    assert len(index) == 3 * len(HASHES)
    index.check()


def test_a_guess_holds_until_it_expires_or_is_contradicted() -> None:
    index = index_of(w=[])
    index.guess("w", HASHES[:3], expires_at=5.0)
    assert index.matches(HASHES, 4.9) == {"w": 3}
    index.apply("w", EventBatch(1, 1, [stored(HASHES[0])]))
    index.apply("w", EventBatch(1, 2, [IndexEvent(removed=join_hashes(HASHES[2:3]))]))
    assert index.matches(HASHES, 4.9) == {"w": 2}
    index.guess("w", HASHES[1:2], expires_at=9.0)  # again, for longer
    assert index.matches(HASHES, 8.9) == {"w": 2}
    assert index.num_blocks("w") == 1
    assert index.matches(HASHES, 10.0) == {"w": 1}
    index.check()


def test_guesses_survive_a_snapshot_and_become_facts_by_it() -> None:
    index = index_of(w=HASHES[:1])
    index.guess("w", HASHES[:3], expires_at=5.0)
    index.load("w", Snapshot(2, 0, join_hashes([HASHES[0], HASHES[1], HASHES[5]])))
    assert index.matches(HASHES, 0.0) == {"w": 3}
    assert index.num_blocks("w") == 3
    assert index.accuracy == Accuracy(num_believed=1, num_true=3, num_both=1)
    assert index.matches(HASHES, 100.0) == {"w": 2}
    index.check()


def test_another_digest_is_told_and_the_snapshot_says_how_wrong_it_was() -> None:
    index = index_of(w=HASHES[:4])
    truth = index_keys([*HASHES[:3], *HASHES[6:9]])
    agreed = EventBatch(1, 1, [], digest_of(index_keys(HASHES[:4])))
    assert index.apply("w", agreed) is Applied.APPLIED
    assert (index.accuracy.precision, index.accuracy.recall) == (1.0, 1.0)
    assert index.apply("w", EventBatch(1, 2, [stored(HASHES[4])], digest_of(truth))) is Applied.DIVERGED
    assert index.load("w", Snapshot(1, 1, truth.tobytes())) is Applied.DUPLICATE
    assert index.load("w", Snapshot(1, 1, truth.tobytes()), again=True) is Applied.APPLIED
    assert index.accuracy == Accuracy(num_believed=5, num_true=6, num_both=3)
    assert (index.accuracy.precision, index.accuracy.recall) == (0.6, 0.5)
    assert index.apply("w", EventBatch(1, 2, [], Digest(6, digest_of(truth).xor))) is Applied.APPLIED
    assert index.accuracy.precision == 1.0


def test_several_batches_at_once_are_as_one_after_another() -> None:
    batches = [
        EventBatch(1, 1, [stored(*HASHES[:6])]),
        EventBatch(1, 2, [IndexEvent(removed=join_hashes(HASHES[2:5])), stored(HASHES[3])]),
        EventBatch(1, 3, [IndexEvent(removed=join_hashes(HASHES[3:4])), stored(HASHES[2], HASHES[2])]),
        EventBatch(1, 5, [stored(HASHES[11])]),
    ]
    single, merged = index_of(w=[]), index_of(w=[])
    for batch in batches:
        single.apply("w", batch)
    assert merged.apply("w", *batches) is Applied.GAP
    assert merged.position("w") == single.position("w") == (1, 3)
    assert set(merged.stored("w").tolist()) == set(single.stored("w").tolist())
    assert single.num_blocks("w") == merged.num_blocks("w") == 4
    cleared = [EventBatch(1, 4, [stored(HASHES[7]), IndexEvent(cleared=True), stored(HASHES[8])])]
    assert merged.apply("w", *batches[:2], *cleared) is Applied.APPLIED
    assert set(merged.stored("w").tolist()) == set(index_keys(HASHES[8:9]).tolist())
    merged.check()


class IndexMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.index = PrefixIndex()
        self.now = 0.0
        self.held: dict[str, set[bytes]] = {}
        self.guessed: dict[str, dict[bytes, float]] = {}  # unconfirmed, with when they were made
        self.sequences: dict[str, int] = {}

    @rule(worker=st.sampled_from(WORKERS))
    def join(self, worker: str) -> None:
        self.index.add_worker(worker)
        if worker not in self.held:
            self.held[worker], self.guessed[worker] = set(), {}
            self.sequences[worker] = 0
            self.index.load(worker, Snapshot(1, 0, b""))

    @rule(worker=st.sampled_from(WORKERS))
    def leave(self, worker: str) -> None:
        self.index.drop_worker(worker)
        self.held.pop(worker, None)

    @rule(worker=st.sampled_from(WORKERS), changes=st.lists(change_lists, min_size=1, max_size=3))
    def events(self, worker: str, changes: list[list[tuple[bool, list[bytes], list[bytes]]]]) -> None:
        """Some batches of the log, applied at once."""
        sequence = self.sequences.get(worker, 0)
        held, batches = set(self.held.get(worker, ())), []
        for events in changes:
            for cleared, removed, added in events:
                held = ((set() if cleared else held) - set(removed)) | set(added)
                if worker in self.held:
                    ended = {*removed, *added, *(self.guessed[worker] if cleared else ())}
                    self.guessed[worker] = {h: e for h, e in self.guessed[worker].items() if h not in ended}
            encoded = [
                IndexEvent(join_hashes(added), join_hashes(removed), cleared) for cleared, removed, added in events
            ]
            sequence += 1
            batches.append(EventBatch(1, sequence, encoded, digest_of(index_keys(held))))
        applied = self.index.apply(worker, *batches)
        if worker not in self.held:
            assert applied is Applied.UNKNOWN
            return
        assert applied is Applied.APPLIED
        self.sequences[worker], self.held[worker] = sequence, held

    @rule(worker=st.sampled_from(WORKERS), hashes=hash_lists, ahead=st.integers(0, 3))
    def snapshot(self, worker: str, hashes: list[bytes], ahead: int) -> None:
        sequence = self.sequences.get(worker, 0) + ahead
        joined = join_hashes(set(hashes))
        self.index.load(worker, Snapshot(1, sequence, joined), again=True)
        if worker in self.held:
            self.sequences[worker] = sequence
            self.held[worker] = set(hashes)
            self.guessed[worker] = {h: e for h, e in self.guessed[worker].items() if h not in hashes}

    @rule(workers=st.lists(st.sampled_from(WORKERS), max_size=2), hashes=hash_lists)
    def guess(self, workers: list[str], hashes: list[bytes]) -> None:
        self.index.matches(HASHES, self.now)  # as a router does before it places
        self.index.guess(workers[0] if len(workers) == 1 else workers, hashes, self.now + LASTS)
        for worker in workers:
            if worker in self.held:
                self.guessed[worker] |= {hash_: self.now for hash_ in hashes if hash_ not in self.held[worker]}

    @rule(seconds=st.integers(0, 3))
    def wait(self, seconds: int) -> None:
        self.now += seconds

    @rule(max_buckets=st.integers(1, 40))
    def sweep(self, max_buckets: int) -> None:
        self.index.sweep(max_buckets)

    @rule(prompt=st.lists(st.sampled_from(HASHES), max_size=8))
    def match(self, prompt: list[bytes]) -> None:
        got = self.index.matches(prompt, self.now)
        assert all(got.values())
        assert set(got) <= set(self.held)
        for worker in self.held:
            at_least, at_most = self.count(prompt, worker, LASTS), self.count(prompt, worker, 2 * LASTS)
            assert at_least <= got.get(worker, 0) <= at_most

    def count(self, prompt: list[bytes], worker: str, lasts: int) -> int:
        """Leading blocks, if a guess lasts so many seconds."""
        guessed = {hash_ for hash_, made in self.guessed[worker].items() if made + lasts > self.now}
        return next((i for i, h in enumerate(prompt) if h not in self.held[worker] | guessed), len(prompt))

    @invariant()
    def consistent(self) -> None:
        self.index.check()
        assert set(self.index.workers) == set(self.held)
        for worker, held in self.held.items():
            assert self.index.num_blocks(worker) == len(held)
            assert set(self.index.stored(worker).tolist()) == set(read_keys(join_hashes(held)).tolist())


TestIndexMachine = IndexMachine.TestCase
