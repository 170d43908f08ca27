"""vLLM on CPU under measurement: `python -m benchmarks.engine.peer_vllm MODEL_FOLDER THREADS`, see `peers.py`.

float32, eager, no prefix caching. vLLM's offline interface gives no times of steps, so a decode rate is the difference
of two runs over the same prompts, one of which stops at the first token.
"""

from __future__ import annotations

import os
import sys
import time

from benchmarks.engine.peer_loop import serve, take_stdout
from benchmarks.engine.workload import BATCHES, CHUNK, CONTEXT, DECODE_STEPS, PREFILL_LENGTHS, prompt


class Vllm:
    def __init__(self, model: str) -> None:
        from vllm import LLM, SamplingParams  # only here: it is not among our dependencies

        self._sampling = SamplingParams
        self._llm = LLM(
            model=model,
            dtype="float32",
            enforce_eager=True,
            enable_prefix_caching=False,
            max_model_len=max(PREFILL_LENGTHS) + CONTEXT,
            max_num_batched_tokens=CHUNK * max(BATCHES),
            max_num_seqs=max(BATCHES),
            disable_log_stats=True,
        )
        self._num_prompts = 0

    def prefill(self, length: int) -> float:
        return length / self._seconds(self._prompts(1, length), max_tokens=1)

    def decode(self, batch: int) -> float:
        prompts = self._prompts(batch, CONTEXT - DECODE_STEPS // 2)
        first = self._seconds(prompts, max_tokens=1)
        return batch * DECODE_STEPS / (self._seconds(prompts, max_tokens=1 + DECODE_STEPS) - first)

    def _prompts(self, count: int, length: int) -> list[list[int]]:
        self._num_prompts += count
        return [prompt(length, self._num_prompts - index) for index in range(count)]

    def _seconds(self, prompts: list[list[int]], max_tokens: int) -> float:
        sampling = self._sampling(temperature=0.0, max_tokens=max_tokens, ignore_eos=True, detokenize=False)
        began = time.perf_counter()
        self._llm.generate([{"prompt_token_ids": tokens} for tokens in prompts], sampling, use_tqdm=False)
        return time.perf_counter() - began


def main() -> None:
    answers = take_stdout()
    model, threads = sys.argv[1:]
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")  # GiB
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind" if threads == "1" else "auto")
    serve(Vllm(model), answers)


if __name__ == "__main__":
    main()
