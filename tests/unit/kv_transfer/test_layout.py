from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
from tiny_model import make_tiny_model

from diptych.config import WeightForm
from diptych.errors import Incompatible
from diptych.model_folder import ModelFolder
from kv_transfer.hashing import HASH_SCHEME, block_hashes, hash_key
from kv_transfer.layout import WEIGHTS, KVLayout, check_compatible, fingerprint, fingerprint_of


def test_kv_of_int8_weights_is_no_kv_of_full_ones(tmp_path: Path) -> None:
    folder = ModelFolder(make_tiny_model(tmp_path / "tiny"))
    forms: tuple[WeightForm, ...] = get_args(WeightForm)
    prints = {form: fingerprint_of(folder, "m", "float32", 16, form) for form in forms}
    assert set(WEIGHTS) == set(forms)
    assert len(set(prints.values())) == len(forms) == 2
    pools = [KVLayout(1_000, 4, 64, prints[form]).hello(form, b"") for form in forms]
    with pytest.raises(Incompatible, match="weights is full on the first and int8"):
        check_compatible(*pools)
    tokens = list(range(16))
    names = {form: block_hashes(hash_key(prints[form]), tokens, 16) for form in forms}
    assert names["full"] != names["int8"]  # and neither is found in the other's prefix cache


def layout(block_bytes: int = 64, block_size: int = 16, **parts: str) -> KVLayout:
    named = {"model": "m", "revision": "r", "dtype": "float32", "layout": "l/1"} | parts
    return KVLayout(1_000, 4, block_bytes, fingerprint(block_size=block_size, **named))


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
        (layout(weights="int8"), "weights is full on the first and int8 on the second"),
        (layout(block_bytes=32), "block_bytes is 64 on the first and 32 on the second"),  # one rank of two
        (layout(model="m2"), "model is m on the first and m2 on the second"),
        (layout(layout="l/1,tp2"), "layout is l/1 on the first and l/1,tp2 on the second"),
        (layout(block_size=32), "block_size is 16 on the first and 32 on the second"),
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
