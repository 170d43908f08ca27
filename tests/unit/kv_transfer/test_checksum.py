from __future__ import annotations

from math import ceil, nan

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transfer_peers import make_pool

from kv_transfer.checksum import NO_CHECKS, Checks, checksums


def test_a_checksum_sees_every_byte_of_its_block_and_no_other() -> None:
    pool = make_pool(3, 64)
    before = checksums(pool, range(3))
    for byte in range(64):
        pool[1, byte] ^= 1
        first, changed, last = checksums(pool, range(3))
        assert (first, last) == (before[0], before[2])
        assert changed != before[1]
        pool[1, byte] ^= 1


@pytest.mark.parametrize("share", [-0.1, 1.1, nan])
def test_a_share_is_a_share(share: float) -> None:
    with pytest.raises(ValueError, match="share"):
        Checks(share)


@given(share=st.floats(0, 1), num_blocks=st.integers(0, 300), transfer_id=st.text())
def test_as_many_are_chosen_as_equal_settings_demand(share: float, num_blocks: int, transfer_id: str) -> None:
    checks = Checks(share)
    chosen = checks.chosen(transfer_id, num_blocks)
    assert len(chosen) == checks.count(num_blocks) == ceil(share * num_blocks)
    assert chosen <= set(range(num_blocks))


def test_every_block_gets_its_turn() -> None:
    turns = [Checks(0.1).chosen(str(number), 20) for number in range(2_000)]
    for block in range(20):
        assert 100 < sum(block in chosen for chosen in turns) < 300  # 200 expected


def test_all_or_none() -> None:
    assert Checks().chosen("t", 5) == frozenset(range(5))
    assert NO_CHECKS.chosen("t", 5) == frozenset()
