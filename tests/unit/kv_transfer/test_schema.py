from __future__ import annotations

import pytest

from kv_transfer.schema import Digest, digest_of, index_keys, join_hashes, read_keys, stream_id

FIRST = bytes(range(16))
SECOND = bytes(range(1, 17))


def test_an_index_key_is_the_first_eight_bytes_made_odd() -> None:
    assert index_keys([FIRST, SECOND]).tolist() == [
        int.from_bytes(FIRST[:8], "little") | 1,
        int.from_bytes(SECOND[:8], "little"),
    ]
    assert index_keys([bytes(16)]).tolist() == [1]  # 0 is what a free slot of a table holds
    assert index_keys([]).size == 0


def test_what_is_joined_is_read_again() -> None:
    assert read_keys(join_hashes([SECOND, FIRST])).tolist() == index_keys([SECOND, FIRST]).tolist()
    assert read_keys(bytes(8)).tolist() == [1]


def test_what_cannot_be_keys_is_refused() -> None:
    with pytest.raises(ValueError):
        read_keys(b"123")
    with pytest.raises(ValueError):
        index_keys([FIRST, b"short"])
    with pytest.raises(ValueError, match="16 bytes"):
        index_keys([FIRST, bytes(8)])


def test_a_digest_can_be_kept_up_to_date() -> None:
    both = digest_of(index_keys([FIRST, SECOND]))
    assert both == digest_of(index_keys([SECOND])).plus(index_keys([FIRST]))
    assert both.without(index_keys([SECOND])) == digest_of(index_keys([FIRST]))
    assert both.without(index_keys([SECOND, FIRST])) == Digest()


def test_the_stream_id_is_the_position() -> None:
    assert stream_id(3, 12) == "3-12"
