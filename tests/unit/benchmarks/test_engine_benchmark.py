"""The engine benchmark: its arithmetic, its peers' protocol, and that it measures what it says, on a tiny model."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from tiny_model import make_tiny_model

from benchmarks import record as recording
from benchmarks.engine import peers, workload
from benchmarks.engine.ours import BLOCK_SIZE, Ours
from benchmarks.engine.overhead import OverheadProbe
from benchmarks.engine.report import CASES, Round, flops_per_token, summary, table, weight_bytes
from diptych.engine.torch_runner import TorchRunner
from diptych.model_folder import ModelFolder

KEYS = {
    "prefill_512_tok_s",
    "prefill_2048_tok_s",
    "decode_b1_tok_s",
    "decode_b4_tok_s",
    "decode_b16_tok_s",
    "decode_b32_tok_s",
    "prefill_512_share_of_sgemm",
    "decode_b1_share_of_gemv",
    "scheduler_share_b16",
    "exact",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    return ModelFolder(make_tiny_model(tmp_path_factory.mktemp("model") / "tiny"))


def a_round(ours: float, peer: float, speed: float = 1.0) -> Round:
    rates = {"ours": dict.fromkeys(CASES, ours * speed), "vllm_cpu": dict.fromkeys(CASES, peer * speed)}
    return Round(sgemm_flops=1e9 * speed, gemv_bytes=1e8 * speed, scheduler_share_b16=0.02, rates=rates)


def test_shares_and_ratios_are_formed_inside_a_round(folder: ModelFolder) -> None:
    spec = folder.spec
    numbers = summary([a_round(100, 80), a_round(100, 80, speed=0.3), a_round(100, 80, speed=0.5)], spec, exact=True)
    assert numbers.keys() >= KEYS
    assert numbers["decode_b16_tok_s"] == 50
    assert numbers["ratio_vllm_cpu_decode_b16"] == 1.25
    assert numbers["prefill_512_share_of_sgemm"] == pytest.approx(100 * flops_per_token(spec, 512) / 1e9, rel=1e-3)
    assert numbers["decode_b1_share_of_gemv"] == pytest.approx(100 * weight_bytes(spec) / 1e8, rel=1e-3)
    assert json.loads(json.dumps(numbers)) == numbers
    assert "ratio to vllm_cpu" in table(numbers, ["vllm_cpu"])


def test_work_is_that_of_the_model(folder: ModelFolder) -> None:
    """Counted by hand: 64 wide, 4 query and 2 KV heads of 16, 128 in the middle, 2 layers."""
    weights = 2 * (64 * 64 + 2 * 64 * 32 + 64 * 64 + 3 * 64 * 128)
    assert flops_per_token(folder.spec, 1) == 2 * weights + 2 * 4 * 64
    assert flops_per_token(folder.spec, 3) == 2 * weights + 2 * 4 * 64 * 2
    assert weight_bytes(folder.spec) == 4 * (weights + folder.spec.vocab_size * 64)


def test_measures_our_engine(folder: ModelFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workload, "LAST_ID", 200)
    capacity = 4 * 64 * folder.spec.block_bytes(BLOCK_SIZE, 4)
    runner = TorchRunner.load(folder, kv_cache_bytes=capacity, block_size=BLOCK_SIZE, device="cpu", threads=1)
    ours = Ours(runner, folder.spec.max_context)
    assert ours.prefill(512) > 0
    assert ours.decode(4) > 0
    steps = ours.decode_steps(3)
    assert len(steps) == workload.DECODE_STEPS
    assert 0 < OverheadProbe(folder, capacity).share(4) < 1


PEER = """
import sys
print("hello")
print("ready", flush=True)
for line in sys.stdin:
    kind, number = line.split()
    if number == "13":
        sys.exit(3)
    print(number if kind == "prefill" else "oops", flush=True)
"""


def test_asks_a_peer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a_peer_of_the_test.py").write_text(PEER, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setitem(peers.PROGRAMS, "vllm_cpu", "a_peer_of_the_test")
    peer = peers.Peer("vllm_cpu", tmp_path, threads=1, python=sys.executable)
    assert peer.prefill(512) == 512
    with pytest.raises(peers.PeerError, match="'oops'"):
        peer.decode(4)
    with pytest.raises(peers.PeerError, match="status 3"):
        peer.prefill(13)
    peer.close()


def test_a_record_says_how_it_came_about(tmp_path: Path) -> None:
    path = recording.record(tmp_path / "results", "engine", {"decode_b1_tok_s": 3.5})
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["numbers"] == {"decode_b1_tok_s": 3.5}
    assert "/" not in content["command"].split()[0]
    assert {"command", "commit", "uncommitted_changes", "machine", "versions", "time"} <= content.keys()
