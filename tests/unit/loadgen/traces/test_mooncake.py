import json
import math
from pathlib import Path

import pytest

from loadgen.traces.mooncake import TokenBlocks, TraceRequest, quantum_ms, read_mooncake, write_mooncake


def test_reads_what_it_writes(tmp_path: Path) -> None:
    requests = [TraceRequest(27_482.0, 1_100, 52, (46, 47, 2_353)), TraceRequest(30_535.0, 5, 1, (46,))]
    path = tmp_path / "trace.jsonl"
    path.write_text("\n".join(write_mooncake(requests)) + "\n\n")
    assert read_mooncake(path) == requests
    assert read_mooncake(path, limit=1) == requests[:1]
    assert requests[0].full_ids == (46, 47)


@pytest.mark.parametrize(
    "line", ["{", '{"timestamp": 0}', '{"timestamp": 0, "input_length": 513, "output_length": 1, "hash_ids": [1]}']
)
def test_a_bad_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "trace.jsonl"
    good = json.dumps({"timestamp": 0, "input_length": 3, "output_length": 1, "hash_ids": [1]})
    path.write_text(f"{good}\n{line}\n")
    with pytest.raises(ValueError, match=r"trace.jsonl, line 2"):
        read_mooncake(path)


def test_comes_in_order_of_arrival(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text("\n".join(write_mooncake([TraceRequest(5.0, 3, 1), TraceRequest(1.0, 4, 1)])))
    assert [each.arrival_ms for each in read_mooncake(path)] == [1.0, 5.0]


def test_coarse_timestamps_are_recognised() -> None:
    coarse = [TraceRequest(3_000.0 * (i // 10), 3, 1) for i in range(100)]
    fine = [TraceRequest(37.0 * i, 3, 1) for i in range(100)]
    assert (quantum_ms(coarse), quantum_ms(fine)) == (3_000.0, 0.0)


def test_ids_expand_to_the_same_tokens_everywhere() -> None:
    blocks = TokenBlocks(49_152)
    first = blocks.prompt(TraceRequest(0.0, 1_100, 1, (1, 2, 3)))
    second = blocks.prompt(TraceRequest(0.0, 1_300, 1, (1, 2, 4)))
    assert len(first) == 1_100
    assert first[:1_024] == second[:1_024]
    assert first[1_024:] != second[1_024:1_100]
    assert blocks.block(1)[:7] == blocks.block(1, 7)
    assert blocks.block(1)[:4] == [41_948, 22_372, 46_216, 30_975]  # or every recorded experiment changes
    assert {*range(256, 49_152)} > {*first}


def test_requests_without_ids_share_nothing() -> None:
    blocks = TokenBlocks(49_152)
    request = TraceRequest(0.0, 600, 1)
    assert blocks.prompt(request, 1) != blocks.prompt(request, 2)
    assert len(blocks.prompt(request, 1)) == 600


def test_blocks_of_nothing_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text("\n".join(write_mooncake([TraceRequest(5.0, 3, 1, (1,))])))
    with pytest.raises(ValueError, match="block_tokens is 0"):
        read_mooncake(path, block_tokens=0)


@pytest.mark.parametrize(
    "wrong", [(0.0, 0, 1), (0.0, 1, 0), (-1.0, 1, 1), (math.inf, 1, 1), (math.nan, 1, 1), (1e12, 1, 1)]
)
def test_impossible_requests_are_refused(wrong: tuple[float, int, int]) -> None:
    with pytest.raises(ValueError, match="at least one token"):
        TraceRequest(*wrong)
