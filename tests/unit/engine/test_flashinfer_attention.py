"""The FlashInfer path against dense attention, with a stand-in for the package; and its calls against the real
package's signatures, where that is installed (its kernels need a GPU, its signatures do not)."""

from __future__ import annotations

import inspect
import logging
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from fake_flashinfer import FakeFlashInfer
from paged_reference import HeadShape, PagedSequence, run_step
from tiny_model import make_tiny_model

from diptych.engine import backend
from diptych.engine.attention_choice import AttentionKind
from diptych.engine.backend import Backend, choose_backend, flashinfer_difference
from diptych.engine.flashinfer_attention import FlashInferAttention
from diptych.engine.sdpa_attention import SdpaPagedAttention
from diptych.model_folder import ModelFolder
from diptych.model_spec import ModelSpec

SHAPE = HeadShape(9, 3, 64)
BFLOAT16, CPU = torch.bfloat16, torch.device("cpu")


@pytest.fixture
def library() -> FakeFlashInfer:
    return FakeFlashInfer()


@pytest.fixture
def spec(tmp_path: Path) -> ModelSpec:
    return ModelFolder(make_tiny_model(tmp_path / "tiny")).spec


def test_equals_dense_attention_in_chunks_and_mixed_steps(library: FakeFlashInfer) -> None:
    attention = FlashInferAttention(library, SHAPE.cache(BFLOAT16), SHAPE.heads)
    long, short = (
        PagedSequence(SHAPE, 100, range(30, 23, -1), BFLOAT16),
        PagedSequence(SHAPE, 5, [40], BFLOAT16, seed=1),
    )
    parts = [run_step(attention, [(long, start, end)])[0] for start, end in pairwise([0, 1, 16, 60])]
    prompt, rest = run_step(attention, [(short, 0, 4), (long, 60, 99)])
    last, single = run_step(attention, [(long, 99, 100), (short, 4, 5)])
    torch.testing.assert_close(torch.cat([*parts, rest, last]), long.expected(), rtol=3e-2, atol=3e-2)
    torch.testing.assert_close(torch.cat([prompt, single]), short.expected(), rtol=3e-2, atol=3e-2)


def test_reads_the_pool_where_it_lies(library: FakeFlashInfer) -> None:
    cache = SHAPE.cache(BFLOAT16)
    run_step(FlashInferAttention(library, cache, SHAPE.heads), [(PagedSequence(SHAPE, 20, [3, 1], BFLOAT16), 0, 20)], 2)
    _, (keys, values) = next(call.args for call in library.calls if call.method == "run")
    assert keys.data_ptr() == cache.pool[0, 2, 0].data_ptr()
    assert values.data_ptr() == cache.pool[0, 2, 1].data_ptr()
    assert keys.stride(0) == cache.pool.stride(0)  # from block to block over all layers


def test_tokens_behind_the_plan_are_padding(library: FakeFlashInfer) -> None:
    cache = SHAPE.cache(BFLOAT16)
    attention = FlashInferAttention(library, cache, SHAPE.heads)
    sequence = PagedSequence(SHAPE, 2, [3], BFLOAT16)
    out = attention.run(0, sequence.query, sequence.key, sequence.value, attention.plan([sequence.row(0, 1)]))
    assert not out[1].any()
    assert not cache.pool[3, :, :, :, 1].any()
    torch.testing.assert_close(out[:1].float(), sequence.expected()[:1], rtol=3e-2, atol=3e-2)


def test_decode_inputs_may_be_filled_again_for_other_rows(library: FakeFlashInfer) -> None:
    attention = FlashInferAttention(library, SHAPE.cache(BFLOAT16), SHAPE.heads)
    sequences = [PagedSequence(SHAPE, 33, range(9 * i, 9 * i + 9), BFLOAT16, seed=i) for i in range(3)]
    run_step(attention, [(sequence, 0, 32) for sequence in sequences])
    inputs = attention.decode_inputs(batch=2, width=9)
    plan = inputs.plan()
    for pair in (sequences[:2], sequences[1:]):
        inputs.fill([sequence.row(32, 33) for sequence in pair])
        query, key, value = (torch.cat([getattr(s, name)[32:] for s in pair]) for name in ("query", "key", "value"))
        out = attention.run(1, query, key, value, inputs.plan())
        expected = torch.cat([sequence.expected()[32:] for sequence in pair])
        torch.testing.assert_close(out.float(), expected, rtol=3e-2, atol=3e-2)
        assert inputs.plan().wrapper is plan.wrapper


def test_calls_fit_the_real_packages_signatures(library: FakeFlashInfer) -> None:
    real = pytest.importorskip("flashinfer")
    test_equals_dense_attention_in_chunks_and_mixed_steps(library)
    test_decode_inputs_may_be_filled_again_for_other_rows(library)
    assert {(call.wrapper, call.method) for call in library.calls} == {
        (wrapper, method)
        for wrapper in ("BatchPrefillWithPagedKVCacheWrapper", "BatchDecodeWithPagedKVCacheWrapper")
        for method in ("__init__", "plan", "run")
    }
    for call in library.calls:
        wrapper = getattr(real, call.wrapper)
        inspect.signature(getattr(wrapper, call.method)).bind(None, *call.args, **call.kwargs)
        if call.method == "plan" and hasattr(wrapper, "_plan_impl"):  # where `plan` takes **kwargs and hands them on
            inspect.signature(wrapper._plan_impl).bind(None, *call.args, **call.kwargs)


def test_the_check_at_start_is_content_with_a_right_library(library: FakeFlashInfer, spec: ModelSpec) -> None:
    assert flashinfer_difference(library, spec, CPU, BFLOAT16) < 0.03


class TestWhatIsUsed:
    """`choose_backend` on a machine that looks like one with a GPU; what it makes stays on CPU."""

    @pytest.fixture(autouse=True)
    def gpu(self, monkeypatch: pytest.MonkeyPatch, library: FakeFlashInfer) -> None:
        def choose(device_type: str, capability: object, dtype: str, head_dim: int, libraries: set[str]) -> object:
            return original("cuda", (9, 0), dtype, 64, libraries)

        original = backend.choose_attention
        monkeypatch.setattr(backend, "choose_attention", choose)
        monkeypatch.setattr(backend.importlib.util, "find_spec", lambda name: object())
        monkeypatch.setattr(backend.importlib, "import_module", lambda name: library)

    def chosen(self, spec: ModelSpec, choice: backend.KernelChoice = "auto") -> Backend:
        return choose_backend(choice, spec, CPU, BFLOAT16)

    def test_flashinfer_where_it_is_installed_and_agrees(
        self, spec: ModelSpec, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO)
        backend = self.chosen(spec)
        assert backend.kind is AttentionKind.FLASHINFER
        assert isinstance(backend.attention(HeadShape(4, 2, 16).cache(BFLOAT16), spec), FlashInferAttention)
        assert "FlashInfer agrees with torch's attention within" in caplog.text

    def test_torch_where_it_computes_something_else(
        self, spec: ModelSpec, library: FakeFlashInfer, caplog: pytest.LogCaptureFixture
    ) -> None:
        library.off_by = 0.2
        assert self.chosen(spec).kind is AttentionKind.SDPA
        assert "FlashInfer is off by 0.2" in caplog.text

    def test_torch_where_it_gives_no_numbers(self, spec: ModelSpec, library: FakeFlashInfer) -> None:
        library.off_by = torch.nan
        assert self.chosen(spec).kind is AttentionKind.SDPA

    def test_torch_where_it_cannot_be_built(
        self, spec: ModelSpec, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def fail(*_: object, **__: object) -> None:
            raise FileNotFoundError("nvcc")

        monkeypatch.setattr(FlashInferAttention, "plan", fail)
        assert self.chosen(spec).kind is AttentionKind.SDPA
        assert "installed but cannot be used, attention runs in torch: FileNotFoundError('nvcc')" in caplog.text

    def test_torch_where_asked_for(self, spec: ModelSpec) -> None:
        chosen = self.chosen(spec, "torch")
        assert chosen.kind is AttentionKind.SDPA
        assert isinstance(chosen.attention(HeadShape(4, 2, 16).cache(BFLOAT16), spec), SdpaPagedAttention)

    def test_native_cannot_be_had(self, spec: ModelSpec) -> None:
        with pytest.raises(ValueError, match=r"cannot be had for torch\.bfloat16"):
            self.chosen(spec, "native")
