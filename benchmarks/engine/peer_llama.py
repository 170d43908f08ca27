"""llama.cpp under measurement: `python -m benchmarks.engine.peer_llama MODEL THREADS`, see `peers.py`.

MODEL is a GGUF file, or a folder with one in it. Weights and KV are float32: a quantized file is first expanded by
llama.cpp itself, into a temporary file. Tokens are fed through `llama_decode`, as llama.cpp's own batched-bench does;
sampling is left out, which favours llama.cpp a little.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.engine.peer_loop import serve, take_stdout
from benchmarks.engine.workload import BATCHES, CHUNK, CONTEXT, DECODE_STEPS, prompt

CACHE_TOKENS = max(BATCHES) * (CONTEXT + DECODE_STEPS)
GGML_TYPE_F32 = 0
LLAMA_FTYPE_ALL_F32 = 0


class Llama:
    def __init__(self, gguf: Path, threads: int) -> None:
        import llama_cpp  # only here: it is not among our dependencies

        self._api: Any = llama_cpp
        self._api.llama_backend_init()
        with tempfile.TemporaryDirectory() as folder:
            expanded = self._expand(gguf, Path(folder) / "float32.gguf")
            load = getattr(self._api, "llama_model_load_from_file", None) or self._api.llama_load_model_from_file
            self._model = load(str(expanded).encode(), self._api.llama_model_default_params())
        if not self._model:
            raise ValueError(f"llama.cpp cannot load {gguf}")
        self._context = self._make_context(threads)
        self._batch = self._api.llama_batch_init(CHUNK, 0, 1)
        self._num_prompts = 0

    def prefill(self, length: int) -> float:
        self._clear()
        return length / self._fill(0, length)

    def decode(self, batch: int) -> float:
        self._clear()
        length = CONTEXT - DECODE_STEPS // 2
        for sequence in range(batch):
            self._fill(sequence, length)
        began = time.perf_counter()
        for step in range(DECODE_STEPS):
            self._run([(100 + step, length + step, sequence, True) for sequence in range(batch)])
        return batch * DECODE_STEPS / (time.perf_counter() - began)

    def _fill(self, sequence: int, length: int) -> float:
        """Seconds to compute a prompt in chunks."""
        self._num_prompts += 1
        tokens = prompt(length, self._num_prompts)
        began = time.perf_counter()
        for start in range(0, length, CHUNK):
            end = min(start + CHUNK, length)
            self._run([(tokens[i], i, sequence, i == length - 1) for i in range(start, end)])
        return time.perf_counter() - began

    def _run(self, rows: list[tuple[int, int, int, bool]]) -> None:
        """One llama_decode. rows: (token, position, sequence, whether logits are wanted)."""
        batch = self._batch
        batch.n_tokens = len(rows)
        for index, (token, position, sequence, wanted) in enumerate(rows):
            batch.token[index], batch.pos[index] = token, position
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, sequence
            batch.logits[index] = wanted
        status = self._api.llama_decode(self._context, batch)
        if status:
            raise RuntimeError(f"llama_decode returned {status}")
        self._api.llama_synchronize(self._context)

    def _make_context(self, threads: int) -> Any:
        params = self._api.llama_context_default_params()
        params.n_ctx, params.n_seq_max = CACHE_TOKENS, max(BATCHES)
        params.n_batch = params.n_ubatch = CHUNK
        params.n_threads = params.n_threads_batch = threads
        params.type_k = params.type_v = GGML_TYPE_F32
        if hasattr(params, "kv_unified"):
            params.kv_unified = True  # else one sequence gets n_ctx / n_seq_max
        make = getattr(self._api, "llama_init_from_model", None) or self._api.llama_new_context_with_model
        context = make(self._model, params)
        if not context:
            raise ValueError("llama.cpp cannot make a context")
        return context

    def _clear(self) -> None:
        if hasattr(self._api, "llama_memory_clear"):
            self._api.llama_memory_clear(self._api.llama_get_memory(self._context), True)
        else:
            self._api.llama_kv_cache_clear(self._context)

    def _expand(self, gguf: Path, to: Path) -> Path:
        params = self._api.llama_model_quantize_default_params()
        params.ftype, params.allow_requantize = LLAMA_FTYPE_ALL_F32, True
        if status := self._api.llama_model_quantize(str(gguf).encode(), str(to).encode(), params):
            raise ValueError(f"llama.cpp cannot expand {gguf}: status {status}")
        return to


def find_gguf(model: Path) -> Path:
    if model.is_file():
        return model
    files = sorted(model.glob("*.gguf"))
    if not files:
        raise FileNotFoundError(f"no .gguf file in {model}; name one with --gguf")
    return files[0]


def main() -> None:
    answers = take_stdout()
    model, threads = sys.argv[1:]
    serve(Llama(find_gguf(Path(model)), int(threads)), answers)


if __name__ == "__main__":
    main()
