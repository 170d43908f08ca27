"""Decode by recorded graphs, with a recorder that needs no GPU: same tokens, and no write outside what is owned."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from drive_runner import Driven, decode, prefill, step
from fake_flashinfer import FakeFlashInfer
from graph_recorders import CalledAgain, Recording, ReplayedOperators
from tiny_model import make_tiny_model
from torch import Tensor

from diptych.engine import linear, torch_runner
from diptych.engine.attention import PagedAttention, TorchPagedAttention
from diptych.engine.cuda_graphs import Graph
from diptych.engine.flashinfer_attention import FlashInferAttention
from diptych.engine.interface import Plan, Row
from diptych.engine.kv_cache import KVCache
from diptych.engine.model import Model
from diptych.engine.rope import RotaryEmbedding
from diptych.engine.row_ops import TorchRowOps
from diptych.engine.sdpa_attention import SdpaPagedAttention
from diptych.engine.torch_runner import TorchRunner
from diptych.engine.weights import load_weights
from diptych.model_folder import ModelFolder

BLOCK, NUM_BLOCKS, MAX_CONTEXT = 4, 40, 64
Make = Callable[[KVCache, int], PagedAttention]


def flashinfer(cache: KVCache, num_heads: int) -> PagedAttention:
    return FlashInferAttention(FakeFlashInfer(), cache, num_heads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    return ModelFolder(make_tiny_model(tmp_path_factory.mktemp("model") / "tiny", max_context=MAX_CONTEXT))


@pytest.fixture(autouse=True)
def plain_linears(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: oneDNN's packed weights are opaque, and cannot be recorded either."""
    monkeypatch.setattr(linear, "can_pack", lambda weight: False)


def make_runner(
    folder: ModelFolder, make: Make = SdpaPagedAttention, dtype: torch.dtype = torch.float32
) -> TorchRunner:
    """As `TorchRunner.load` makes one on a GPU."""
    spec, device = folder.spec, torch.device("cpu")
    cache = KVCache(
        capacity_bytes=NUM_BLOCKS * spec.block_bytes(BLOCK, dtype.itemsize),
        num_layers=spec.num_layers,
        num_kv_heads=spec.num_kv_heads,
        block_size=BLOCK,
        head_dim=spec.head_dim,
        dtype=dtype,
        device=device,
        num_scratch_blocks=1,
    )
    with torch.inference_mode():
        attention = make(cache, spec.num_heads)
        weights = load_weights(folder, dtype, device)
        rope = RotaryEmbedding(spec, device, dtype)
    model = Model(spec, weights, rope, attention, TorchRowOps(spec.rms_norm_eps))
    return TorchRunner(model, cache, attention, exact=False)


@torch.inference_mode()
def record(runner: TorchRunner, recording: Recording, max_batch: int = 4) -> None:
    runner.record_graphs(recording, max_batch, MAX_CONTEXT)


def sequences(count: int) -> list[Driven]:
    """Of different lengths, in scattered blocks."""
    free = list(range(NUM_BLOCKS))[::-1]
    prompts = [[3 + (7 * i + j) % 250 for j in range(3 + 5 * i)] for i in range(count)]
    return [Driven(prompt, [free.pop((3 * i) % len(free)) for _ in range(10)]) for i, prompt in enumerate(prompts)]


def generate(runner: TorchRunner, count: int = 3, num_tokens: int = 9) -> list[list[int]]:
    driven = sequences(count)
    for sequence in driven:
        prefill(runner, sequence)
    decode(runner, driven, num_tokens)
    return [sequence.output for sequence in driven]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_replays_give_the_tokens_of_the_usual_way(folder: ModelFolder, count: int) -> None:
    expected = generate(make_runner(folder), count)
    runner, recording = make_runner(folder), Recording()
    record(runner, recording)
    checks = recording.num_replays
    assert generate(runner, count) == expected
    assert recording.num_replays == checks + 8  # every decode step, but not the prefills


def test_with_flashinfers_wrappers_too(folder: ModelFolder) -> None:
    runner, recording = make_runner(folder, flashinfer), Recording(CalledAgain)
    record(runner, recording)
    assert len(recording.graphs) == 2
    checks = recording.num_replays
    assert generate(runner) == generate(make_runner(folder))
    assert recording.num_replays == checks + 8


def test_padding_writes_nothing_that_anybody_owns(folder: ModelFolder) -> None:
    runner, recording = make_runner(folder), Recording()
    record(runner, recording)
    (sequence,) = sequences(1)
    prefill(runner, sequence)
    mark = 0.5
    foreign = [block for block in range(NUM_BLOCKS) if block not in sequence.blocks]
    runner._cache.pool[foreign] = mark
    before, replays = runner._cache.pool.clone(), recording.num_replays
    position = sequence.num_computed
    step(runner, [sequence])
    assert recording.num_replays == replays + 1  # one row in a bucket of two: there was padding

    changed = (runner._cache.pool != before).flatten(2).any(-1).any(-1).nonzero().flatten().tolist()
    block, offset = sequence.blocks[position // BLOCK], position % BLOCK
    assert set(changed) <= {block, runner._cache.scratch_block}
    before[block, :, :, :, offset:] = runner._cache.pool[block, :, :, :, offset:]  # written, and cleared behind it
    assert torch.equal(before[:NUM_BLOCKS], runner._cache.pool[:NUM_BLOCKS])


def test_the_scratch_block_is_not_in_the_pool_that_peers_see(folder: ModelFolder) -> None:
    runner = make_runner(folder)
    assert runner.num_blocks == NUM_BLOCKS
    assert runner._cache.scratch_block == NUM_BLOCKS
    assert runner._cache.pool.shape[0] == NUM_BLOCKS + 1


def test_what_a_padded_row_left_behind_does_not_reach_others(folder: ModelFolder) -> None:
    runner = make_runner(folder)
    record(runner, Recording())
    expected = generate(runner)
    ruined = make_runner(folder)
    record(ruined, Recording())
    ruined._cache.pool[ruined._cache.scratch_block] = torch.nan
    assert generate(ruined) == expected


def test_mixed_steps_and_guesses_are_computed_the_usual_way(folder: ModelFolder) -> None:
    runner, recording = make_runner(folder), Recording()
    record(runner, recording)
    first, second = sequences(2)
    prefill(runner, first)
    checks = recording.num_replays
    step(runner, [first, second])  # one decodes, one has its prompt
    assert recording.num_replays == checks
    step(runner, [first, second])
    assert recording.num_replays == checks + 1


def test_steps_beyond_the_buckets_are_computed_the_usual_way(folder: ModelFolder) -> None:
    expected = generate(make_runner(folder), 3)
    runner, recording = make_runner(folder), Recording()
    record(runner, recording, max_batch=2)
    checks = recording.num_replays
    assert generate(runner, 3) == expected
    assert recording.num_replays == checks


def test_records_the_largest_first_and_nothing_for_no_batch(folder: ModelFolder) -> None:
    runner, recording = make_runner(folder), Recording()
    record(runner, recording)
    assert [len(graph.hidden) for graph in recording.graphs] == [4, 2]
    nothing = Recording()
    record(make_runner(folder), nothing, max_batch=0)
    assert nothing.graphs == []


class Stale(ReplayedOperators):
    """What a graph over memory that has since moved does: it repeats what it saw."""

    def replay(self) -> None:
        self.num_replays += 1


def test_a_replay_that_is_wrong_is_noticed_at_once(folder: ModelFolder, caplog: pytest.LogCaptureFixture) -> None:
    runner, recording = make_runner(folder), Recording(Stale)
    record(runner, recording)
    assert "decode runs without CUDA graphs: a replay is off by" in caplog.text
    checks = recording.num_replays
    assert generate(runner) == generate(make_runner(folder))
    assert recording.num_replays == checks


def test_what_cannot_be_recorded_is_computed_the_usual_way(
    folder: ModelFolder, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(compute: Callable[[], Tensor]) -> tuple[Graph, Tensor]:
        raise RuntimeError("operation not permitted when stream is capturing")

    runner = make_runner(folder)
    with torch.inference_mode():
        runner.record_graphs(fail, 4, MAX_CONTEXT)
    assert "without CUDA graphs, which cannot be recorded here: operation not permitted" in caplog.text
    assert generate(runner) == generate(make_runner(folder))


def test_attention_that_cannot_be_recorded_is_left_alone(folder: ModelFolder) -> None:
    runner = make_runner(folder, TorchPagedAttention)
    recording = Recording()
    record(runner, recording)
    assert recording.graphs == []


def test_bfloat16_replays_too(folder: ModelFolder) -> None:
    runner, recording = make_runner(folder, dtype=torch.bfloat16), Recording()
    record(runner, recording)
    checks = recording.num_replays
    outputs = generate(runner)
    assert recording.num_replays == checks + 8
    assert all(len(output) == 9 for output in outputs)


def test_every_step_ends_when_the_device_has_written_its_blocks(
    folder: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chunk without a draw waits as well: NIXL may read its blocks as soon as `execute` has returned."""
    events: list[str] = []
    monkeypatch.setattr(torch_runner, "wait_for", lambda device: events.append("wait"))
    runner = make_runner(folder)
    forward, clear = runner._model.forward, runner._cache.clear_tail
    monkeypatch.setattr(runner._model, "forward", lambda *parts: (events.append("compute"), forward(*parts))[1])
    monkeypatch.setattr(runner._cache, "clear_tail", lambda *parts: (events.append("clear"), clear(*parts))[1])
    runner.execute(Plan([Row(1, [5] * BLOCK, 0, [3])]))
    assert events == ["compute", "wait"]
    runner.clear_tail(3, 2)
    assert events == ["compute", "wait", "clear", "wait"]
    runner.execute(Plan([], copies=[(3, 4)]))
    assert events == ["compute", "wait", "clear", "wait", "wait"]
