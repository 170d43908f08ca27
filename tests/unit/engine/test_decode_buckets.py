"""Buckets of decode steps: what is padded to what."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from diptych.engine.decode_buckets import MAX_READ_TOKENS, Bucket, choose_bucket, make_buckets, pad_rows
from diptych.engine.interface import Row

BLOCK = 16


def row(start: int, count: int = 1) -> Row:
    return Row(7, [5] * count, start, list(range(start // BLOCK + 1)))


def test_one_width_where_wide_tables_are_free() -> None:
    buckets = make_buckets(20, 512, BLOCK, reads_padding=False)
    assert buckets == [Bucket(batch, 512) for batch in (2, 4, 8, 16, 20)]


def test_several_widths_where_they_are_not_and_none_that_reads_too_much() -> None:
    buckets = make_buckets(64, 512, BLOCK, reads_padding=True)
    assert {bucket.width for bucket in buckets} == {16, 64, 256, 512}
    assert Bucket(64, 64) in buckets
    assert Bucket(64, 256) not in buckets
    assert all(bucket.batch * bucket.width * BLOCK <= MAX_READ_TOKENS for bucket in buckets)


def test_edges() -> None:
    assert make_buckets(0, 512, BLOCK, reads_padding=True) == []
    assert make_buckets(1, 4, BLOCK, reads_padding=True) == [Bucket(2, 4)]
    assert make_buckets(1, 4, BLOCK, reads_padding=False) == [Bucket(2, 4)]


def test_takes_the_smallest_that_holds_the_step() -> None:
    buckets = make_buckets(64, 512, BLOCK, reads_padding=True)
    assert choose_bucket(buckets, [row(0)], BLOCK) == Bucket(2, 16)
    assert choose_bucket(buckets, [row(0)] * 3, BLOCK) == Bucket(4, 16)
    assert choose_bucket(buckets, [row(255), row(3)], BLOCK) == Bucket(2, 16)
    assert choose_bucket(buckets, [row(256), row(3)], BLOCK) == Bucket(2, 64)


def test_only_steps_of_single_tokens() -> None:
    buckets = make_buckets(64, 512, BLOCK, reads_padding=False)
    assert choose_bucket(buckets, [row(3), row(3, count=2)], BLOCK) is None
    assert choose_bucket(buckets, [row(3)] * 65, BLOCK) is None


def test_padding_touches_only_the_scratch_block() -> None:
    rows = [row(3), row(40)]
    padded = pad_rows(rows, 5, scratch_block=99)
    assert padded[:2] == rows
    assert len(padded) == 5
    assert all((list(each.tokens), each.start, list(each.blocks)) == ([0], 0, [99]) for each in padded[2:])


@given(
    st.lists(st.integers(0, 8191), min_size=1, max_size=80),
    st.integers(1, 64),
    st.sampled_from([1, 16, 32]),
    st.booleans(),
)
def test_a_chosen_bucket_holds_the_step(starts: list[int], max_batch: int, block: int, reads_padding: bool) -> None:
    buckets = make_buckets(max_batch, 8192 // block, block, reads_padding=reads_padding)
    rows = [Row(1, [1], start, [0] * (start // block + 1)) for start in starts]
    bucket = choose_bucket(buckets, rows, block)
    if bucket is None:
        assert reads_padding or len(rows) > max_batch
    else:
        assert len(rows) <= bucket.batch
        assert max(len(each.blocks) for each in rows) <= bucket.width
