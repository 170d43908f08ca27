"""Timing models by the names that users give them, and the files they are kept in."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from diptych.engine.sim.timing import FittedTiming, FixedTiming, StepShape
from diptych.engine.sim.timing_spec import TimingFile, as_text, find_deployment, inlined, parse_timing

LLAMA = "nvidia/Llama-3.1-70B-Instruct-FP8/h100_sxm/4"


def test_constants() -> None:
    assert parse_timing("fixed:prefill_ms=100, decode_ms=25") == FixedTiming(100.0, 25.0)
    assert parse_timing("fixed:decode_ms=1,prefill_ms=2,prefill_us_per_token=3") == FixedTiming(2.0, 1.0, 3.0)


@pytest.mark.parametrize("name", [LLAMA, "Llama-3.1-70B-Instruct-FP8/h100/4", "llama-3.1-70b-instruct-fp8/h100_sxm"])
def test_a_deployment_has_a_long_name_and_short_ones(name: str) -> None:
    assert find_deployment(name).name == "nvidia/Llama-3.1-70B-Instruct-FP8 h100_sxm TP4"
    assert parse_timing(f"fit:{name}") == find_deployment(LLAMA).timing


def test_closed_forms_survive_the_way_through_text() -> None:
    timing = find_deployment(LLAMA).timing
    assert parse_timing(as_text(timing)) == timing
    only = FittedTiming(0.0, 0.0, 0.0, 8.0, 0.0, 0.0)
    assert parse_timing("fitted:decode_c0_ms=8") == only


def test_a_file_is_read_once_and_sent_as_text(tmp_path: Path) -> None:
    timing = find_deployment(LLAMA).timing
    path = tmp_path / "measured.json"
    path.write_bytes(msgspec.json.encode(TimingFile(timing=as_text(timing), source={"workers": 2})))
    assert parse_timing(f"measured:{path}") == timing
    assert inlined(f"measured:{path}") == as_text(timing)
    assert inlined("fixed:prefill_ms=1,decode_ms=2") == "fixed:prefill_ms=1,decode_ms=2"
    assert parse_timing(inlined(f"fit:{LLAMA}")).step_ms(StepShape((), 4, 900)) == timing.step_ms(StepShape((), 4, 900))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "begins with fixed:"),
        ("fast", "begins with fixed:"),
        ("fixed:prefill_ms=1", "lacks decode_ms"),
        ("fixed:prefill_ms=1,decode_ms=x", "'x'; it is a number"),
        ("fixed:prefill_ms=1,decode_ms=nan", "'nan'; it is a number"),
        ("fixed:prefill_ms=1,decode_ms=-1", "from 0 to"),
        ("fixed:prefill_ms=1,decode_ms=0", "above 0"),
        ("fixed:prefill_ms=1,decode_ms=1,speed=3", "knows no 'speed'"),
        ("fitted:d0=1", "knows no 'd0'"),
        ("fit:gpt-9/h100", "no deployment is called"),
        ("fit:Meta-Llama-3.1-70B/h100", "several deployments are called"),
        ("measured:/nowhere/at/all.json", "cannot be read"),
    ],
)
def test_what_is_wrong_is_said(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_timing(text)


@pytest.mark.parametrize(
    "content", [b"", b"{}", b'{"timing": "measured:x"}', b'{"schema": "other", "timing": "fitted:decode_c0_ms=1"}']
)
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="no timing file"):
        parse_timing(f"measured:{path}")
