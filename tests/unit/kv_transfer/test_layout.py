from __future__ import annotations

import pytest

from diptych.errors import Incompatible
from kv_transfer.hashing import HASH_SCHEME
from kv_transfer.layout import KVLayout, check_compatible, fingerprint


def layout(block_bytes: int = 64, **parts: str) -> KVLayout:
    named = {"model": "m", "revision": "r", "dtype": "float32", "layout": "l/1"} | parts
    return KVLayout(1_000, 4, block_bytes, fingerprint(block_size=16, **named))


def test_addresses() -> None:
    pool = layout()
    assert [pool.block_address(block) for block in range(4)] == [1_000, 1_064, 1_128, 1_192]
    assert pool.total_bytes == 256
    for block in (-1, 4):
        with pytest.raises(IndexError):
            pool.block_address(block)
    with pytest.raises(ValueError):
        KVLayout(0, 0, 64, "")


def test_a_hello_describes_the_pool() -> None:
    pool = layout()
    assert KVLayout.of_peer(pool.hello("w", b"")) == pool


def test_the_fingerprint_names_the_hash_scheme() -> None:
    assert HASH_SCHEME in layout().fingerprint


def test_equals_are_compatible() -> None:
    check_compatible(layout().hello("a", b"1"), layout().hello("b", b"2"))


@pytest.mark.parametrize(
    ("other", "why"),
    [
        (layout(dtype="bfloat16"), "dtype is float32 on the first and bfloat16 on the second"),
        (layout(revision="r2"), "revision is r on the first and r2 on the second"),
        (layout(block_bytes=32), "block_bytes is 64 on the first and 32 on the second"),
    ],
)
def test_a_difference_is_named_with_both_sides(other: KVLayout, why: str) -> None:
    with pytest.raises(Incompatible) as refused:
        check_compatible(layout().hello("prefill-1", b""), other.hello("decode-1", b""))
    assert why in refused.value.message
    assert "prefill-1 and decode-1" in refused.value.message


def test_an_unreadable_fingerprint_is_incompatible() -> None:
    with pytest.raises(Incompatible):
        check_compatible(layout().hello("a", b""), KVLayout(0, 4, 64, "garbage").hello("b", b""))
