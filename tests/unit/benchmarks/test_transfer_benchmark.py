"""The transfer benchmark: its arithmetic, and that it measures what it says, on small blocks and a tiny model."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_model import make_tiny_model

from benchmarks.engine import workload
from benchmarks.transfer import __main__ as program
from benchmarks.transfer.fencing import fencing_ms
from benchmarks.transfer.report import TARGETS, Answers, Moves, summary, table
from kv_transfer.nixl_agent import ucx_environment

MOVES = Moves(raw=0.9, push=1.0, delivered=1.1, checked_push=1.5, checked_delivered=2.0, memcpy=0.5, stall_ms=0.2)
ANSWERS = Answers(
    num_tokens=1024,
    checked_ttft=1020.0,
    checked_exposed=4.0,
    checked_cpu=1100.0,
    unchecked_ttft=1000.0,
    unchecked_exposed=2.0,
    unchecked_cpu=1080.0,
    local_ttft=1000.0,
    single_ttft=1000.0,
    fencing=1.0,
)


def slowed(times: float) -> Moves:
    names = ("raw", "push", "delivered", "checked_push", "checked_delivered", "memcpy")
    return replace(MOVES, **{name: times * getattr(MOVES, name) for name in names})


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ucx_environment(interfaces="lo").items():  # so that it is restored
        monkeypatch.setenv(name, value)


def test_ratios_are_formed_inside_a_round() -> None:
    numbers = summary([MOVES, slowed(3), slowed(10)], [ANSWERS], num_bytes=10**9)
    assert numbers.keys() >= TARGETS.keys()
    assert numbers["push_vs_raw_nixl"] == 0.9
    assert numbers["push_vs_memcpy"] == 0.5
    assert numbers["checked_push_vs_raw_nixl"] == 0.6
    assert numbers["push_gb_s"] == pytest.approx(1 / 3, rel=1e-3)
    assert json.loads(json.dumps(numbers)) == numbers


def test_safety_is_what_checked_answers_take_longer() -> None:
    numbers = summary([MOVES], [ANSWERS], num_bytes=1)
    assert numbers["safety_cost_share"] == pytest.approx((20 + 2 + 1) / 1000)
    assert numbers["safety_cpu_share"] == pytest.approx(20 / 1000)
    assert numbers["exposed_ms_p50"] == 4.0
    assert numbers["exposed_share_of_ttft_p50"] == pytest.approx(4 / 1020, rel=1e-3)
    assert numbers["ttft_disagg_over_single"] == 1.02


def test_table_says_what_was_missed() -> None:
    lines = table(summary([MOVES], [ANSWERS], num_bytes=1)).splitlines()
    missed = {line.split()[0] for line in lines if line.endswith("missed")}
    assert missed == {"exposed_ms_p50", "safety_cost_share"}
    short = replace(ANSWERS, checked_ttft=12.0, single_ttft=10.0, checked_exposed=0.0, unchecked_ttft=12.0)
    lines = table(summary([MOVES], [short], num_bytes=1)).splitlines()
    assert not next(line for line in lines if line.startswith("ttft_disagg_over_single ")).endswith(
        "missed"
    )  # 2 ms free


def test_fencing_is_measured() -> None:
    assert 0 < fencing_ms(64) < 100


async def test_kv_moves_in_every_way() -> None:
    (moves,) = await program._move(num_blocks=8, block_bytes=65_536, turns=1)
    assert moves.raw > 0
    assert 0 < moves.push < moves.delivered
    assert 0 < moves.checked_push < moves.checked_delivered
    assert moves.memcpy > 0


@pytest.mark.slow
def test_the_whole_of_it_on_a_tiny_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(workload, "LAST_ID", 200)
    monkeypatch.setattr(sys, "argv", ["benchmarks.transfer", str(make_tiny_model(tmp_path / "tiny")), "--quick"])
    program.main()
    numbers = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert numbers.keys() >= TARGETS.keys()
    assert numbers["exposed_ms_p50"] > 0
