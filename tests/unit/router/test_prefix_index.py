"""The index against a model that is nothing but sets."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from kv_transfer.schema import EventBatch, IndexEvent, Snapshot, join_hashes
from router.prefix_index import Applied, PrefixIndex

HASHES = [bytes([index]) * 16 for index in range(12)]
WORKERS = ["w0", "w1", "w2"]
hash_lists = st.lists(st.sampled_from(HASHES), max_size=6)


def stored(*hashes: bytes) -> IndexEvent:
    return IndexEvent(stored=join_hashes(hashes))


def index_of(**workers: list[bytes]) -> PrefixIndex:
    index = PrefixIndex()
    for worker_id, hashes in workers.items():
        index.add_worker(worker_id)
        index.load(worker_id, Snapshot(1, 0, b"0-0", join_hashes(hashes)))
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
    assert index.load("w", Snapshot(1, 7, b"7-0", join_hashes(HASHES[1:3]))) is Applied.APPLIED
    assert index.matches(HASHES[1:3], 0.0) == {"w": 2}
    assert index.matches(HASHES[:1], 0.0) == {}
    assert index.load("w", Snapshot(1, 6, b"6-0", join_hashes(HASHES))) is Applied.DUPLICATE
    assert index.apply("w", EventBatch(1, 8, [IndexEvent(cleared=True), stored(HASHES[0])])) is Applied.APPLIED
    assert index.matches(HASHES, 0.0) == {"w": 1}


def test_nothing_brings_back_a_worker_that_left() -> None:
    index = index_of(gone=HASHES[:4], here=HASHES[:1])
    index.guess("gone", HASHES, expires_at=50.0)
    index.drop_worker("gone")
    assert index.matches(HASHES, 0.0) == {"here": 1}
    assert index.apply("gone", EventBatch(1, 1, [stored(HASHES[0])])) is Applied.UNKNOWN
    assert index.load("gone", Snapshot(9, 9, b"", b"")) is Applied.UNKNOWN
    index.guess("gone", HASHES, expires_at=60.0)
    index.add_worker("heir")  # must not inherit the bit while it is dirty
    assert index.matches(HASHES, 0.0) == {"here": 1}
    assert [index.sweep(5), index.sweep(5), index.sweep(5)] == [5, 5, 2]
    assert index.sweep() == 0
    assert len(index) == 1
    index.add_worker("next")
    assert index.matches(HASHES, 0.0) == {"here": 1}
    index.check()


def test_a_guess_holds_until_it_expires_or_is_contradicted() -> None:
    index = index_of(w=[])
    index.guess("w", HASHES[:3], expires_at=5.0)
    assert index.matches(HASHES, 4.9) == {"w": 3}
    index.apply("w", EventBatch(1, 1, [stored(HASHES[0])]))
    index.apply("w", EventBatch(1, 2, [IndexEvent(removed=HASHES[2])]))
    assert index.matches(HASHES, 4.9) == {"w": 2}
    index.guess("w", HASHES[1:2], expires_at=9.0)  # again, for longer
    assert index.matches(HASHES, 5.0) == {"w": 2}
    assert index.matches(HASHES, 9.0) == {"w": 1}
    assert index.num_blocks("w") == 1
    index.check()


class IndexMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.index = PrefixIndex()
        self.now = 0.0
        self.held: dict[str, set[bytes]] = {}
        self.guessed: dict[str, dict[bytes, float]] = {}
        self.sequences: dict[str, int] = {}

    @rule(worker=st.sampled_from(WORKERS))
    def join(self, worker: str) -> None:
        self.index.add_worker(worker)
        if worker not in self.held:
            self.held[worker], self.guessed[worker] = set(), {}
            self.sequences[worker] = 0
            self.index.load(worker, Snapshot(1, 0, b"0-0", b""))

    @rule(worker=st.sampled_from(WORKERS))
    def leave(self, worker: str) -> None:
        self.index.drop_worker(worker)
        self.held.pop(worker, None)

    @rule(worker=st.sampled_from(WORKERS), added=hash_lists, removed=hash_lists, cleared=st.booleans())
    def event(self, worker: str, added: list[bytes], removed: list[bytes], cleared: bool) -> None:
        sequence = self.sequences.get(worker, 0) + 1
        event = IndexEvent(join_hashes(added), join_hashes(removed), cleared)
        applied = self.index.apply(worker, EventBatch(1, sequence, [event]))
        if worker not in self.held:
            assert applied is Applied.UNKNOWN
            return
        assert applied is Applied.APPLIED
        self.sequences[worker] = sequence
        self.held[worker] = ((set() if cleared else self.held[worker]) - set(removed)) | set(added)
        for hash_ in list(self.guessed[worker]):
            if cleared or hash_ in removed:
                del self.guessed[worker][hash_]

    @rule(worker=st.sampled_from(WORKERS), hashes=hash_lists)
    def snapshot(self, worker: str, hashes: list[bytes]) -> None:
        sequence = self.sequences.get(worker, 0) + 3
        self.index.load(worker, Snapshot(1, sequence, b"", join_hashes(hashes)))
        if worker in self.held:
            self.sequences[worker] = sequence
            self.held[worker] = set(hashes)

    @rule(worker=st.sampled_from(WORKERS), hashes=hash_lists)
    def guess(self, worker: str, hashes: list[bytes]) -> None:
        self.index.guess(worker, hashes, self.now + 2)
        if worker in self.held:
            self.guessed[worker] |= dict.fromkeys(hashes, self.now + 2)

    @rule(seconds=st.integers(0, 3))
    def wait(self, seconds: int) -> None:
        self.now += seconds

    @rule(max_hashes=st.integers(0, 4))
    def sweep(self, max_hashes: int) -> None:
        self.index.sweep(max_hashes)

    @rule(prompt=st.lists(st.sampled_from(HASHES), max_size=8))
    def match(self, prompt: list[bytes]) -> None:
        expected = {}
        for worker, held in self.held.items():
            here = held | {hash_ for hash_, expires in self.guessed[worker].items() if expires > self.now}
            count = next((i for i, hash_ in enumerate(prompt) if hash_ not in here), len(prompt))
            if count:
                expected[worker] = count
        assert self.index.matches(prompt, self.now) == expected

    @invariant()
    def consistent(self) -> None:
        self.index.check()
        assert set(self.index.workers) == set(self.held)
        for worker, held in self.held.items():
            assert self.index.num_blocks(worker) == len(held)


TestIndexMachine = IndexMachine.TestCase
