from __future__ import annotations

import struct

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from kv_transfer.hashing import HASH_BYTES, block_hashes, hash_key, next_hash

KEY = hash_key("model=tiny", b"tenant")
tokens_lists = st.lists(st.integers(0, 2**32 - 1), max_size=70)


def test_the_scheme_is_written_down() -> None:
    """Hashes outlive processes: a change of scheme must be a change of HASH_SCHEME."""
    key = blake3(struct.pack("<Q", 10) + b"model=tinytenant", derive_key_context=_CONTEXT).digest()
    first = blake3(bytes(16) + struct.pack("<2I", 1, 2), key=key).digest(16)
    second = blake3(first + struct.pack("<2I", 3, 4), key=key).digest(16)
    assert block_hashes(KEY, [1, 2, 3, 4, 5], 2) == [first, second]


_CONTEXT = "diptych 2026 kv block hash chain, version 1"


@given(tokens_lists, st.integers(1, 20))
def test_the_chain_can_be_built_a_block_at_a_time(tokens: list[int], block_size: int) -> None:
    hashes = block_hashes(KEY, tokens, block_size)
    assert len(hashes) == len(tokens) // block_size
    parent = None
    for index, expected in enumerate(hashes):
        parent = next_hash(KEY, parent, tokens[index * block_size : (index + 1) * block_size])
        assert parent == expected
        assert len(parent) == HASH_BYTES


@given(tokens_lists, st.integers(1, 8), st.integers(0, 8))
def test_a_chain_continues_from_any_parent(tokens: list[int], block_size: int, split: int) -> None:
    hashes = block_hashes(KEY, tokens, block_size)
    split = min(split, len(hashes))
    parent = hashes[split - 1] if split else None
    assert block_hashes(KEY, tokens[split * block_size :], block_size, parent) == hashes[split:]


def test_a_hash_names_everything_before_it() -> None:
    assert block_hashes(KEY, [1, 2, 9, 9], 2)[1] != block_hashes(KEY, [1, 3, 9, 9], 2)[1]


def test_keys_differ_by_model_and_scope_and_by_where_one_ends() -> None:
    keys = {hash_key("a", b""), hash_key("b", b""), hash_key("a", b"b"), hash_key("ab", b"")}
    assert len(keys) == 4
    assert all(len(key) == 32 for key in keys)


@pytest.mark.parametrize("tokens", [[-1], [2**32], [1.5]])
def test_what_is_not_a_token_is_refused(tokens: list[int]) -> None:
    with pytest.raises(ValueError, match="token ids"):
        block_hashes(KEY, tokens, 1)


def test_a_parent_has_the_right_size() -> None:
    with pytest.raises(ValueError, match="16 bytes"):
        next_hash(KEY, b"short", [1])
    with pytest.raises(ValueError, match="at least one"):
        block_hashes(KEY, [1], 0)
