"""The pre-registration: what is fixed, and that nothing of it can change unnoticed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest
from falsify_cases import a_design, traffic

from loadgen.falsify.design import Client, orders, stretches, write_design
from loadgen.falsify.questions import arms


def test_every_field_is_in_the_hash() -> None:
    design = a_design()
    assert design.digest == a_design().digest
    changes: dict[str, Any] = {
        "minimal_effect": 0.06,
        "ttft_ms": 1.0,
        "seed": 9,
        "primary": "whatever looks best",
        "stopping": "when it looks good",
        "orders": tuple(reversed(design.orders)),
        "stretches": design.stretches[1:],
        "traffic": traffic(speedup=2.0),
        "arms": tuple(reversed(design.arms)),
        "simulated": True,
        "options": {"worker_options": {"kv_cache_bytes": 1}},
        "client": Client(lag_limit_ms=99.0),
    }
    changed = [msgspec.structs.replace(design, **{name: value}) for name, value in changes.items()]
    assert len({design.digest, *(each.digest for each in changed)}) == 1 + len(changes)


def test_what_is_written_is_what_is_hashed(tmp_path: Path) -> None:
    design = a_design()
    write_design(design, tmp_path / "design.json")
    read = msgspec.json.decode((tmp_path / "design.json").read_bytes(), type=dict[str, Any])
    assert read["sha256"] == design.digest
    assert msgspec.convert(read["design"], type(design)).digest == design.digest


def test_orders_are_balanced_drawn_and_seeded() -> None:
    for seed in range(20):
        made = orders(8, seed)
        assert Counter(made) == {"AB": 4, "BA": 4}
        assert all(made[i] != made[i + 1] for i in range(0, 8, 2))
    assert orders(8, 3) == orders(8, 3)
    assert len({orders(8, seed) for seed in range(20)}) > 5


@pytest.mark.parametrize(("total", "blocks", "each"), [(80, 8, 10), (1_000, 8, 0), (997, 6, 50)])
def test_stretches_are_disjoint_and_inside(total: int, blocks: int, each: int) -> None:
    made = stretches(total, blocks, each)
    taken = [at for stretch in made for at in range(stretch.first, stretch.first + stretch.count)]
    assert len(taken) == len(set(taken)) == blocks * (each or total // blocks)
    assert min(taken) == 0
    assert max(taken) <= total - 1


@pytest.mark.parametrize(
    ("total", "blocks", "each"), [(79, 8, 10), (1_000, 3, 0), (1_000, 2, 0), (1_000, 5, 0), (30, 4, 0)]
)
def test_too_short_a_trace_or_too_few_blocks_are_refused(total: int, blocks: int, each: int) -> None:
    with pytest.raises(ValueError, match="blocks"):
        stretches(total, blocks, each)


def test_arms_differ_in_one_thing_and_have_as_many_workers() -> None:
    apart, together = arms("disaggregation", 2, 3, 256)
    assert (apart.prefill, apart.decode, together.prefill, together.decode) == (2, 3, 0, 5)
    assert apart.policy == together.policy
    aware, blind = arms("cache-aware", 2, 3, 256)
    assert msgspec.structs.replace(aware, name="", policy="") == msgspec.structs.replace(blind, name="", policy="")
    assert (aware.policy, blind.policy) == ("min-ttft", "least-load")
    for question, prefill, decode in (("disaggregation", 0, 4), ("cache-aware", 0, 1), ("cache-aware", 1, 1)):
        with pytest.raises(ValueError):
            arms(question, prefill, decode, 256)  # type: ignore[arg-type]
