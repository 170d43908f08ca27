"""What int8 weights are worth: `python -m benchmarks.quantization [MODEL_FOLDER] [--rounds 3] [--record]`.

Prefill and decode of the whole engine with full and with int8 weights, one thread, in one process. The two take turns
prompt by prompt and step by step, so that both meet the same neighbours, and time is the process's own CPU time, so
that a busy neighbour does not count (it still competes for memory). Rates come from the median step; ratios are formed
within a round, and the median of the rounds is told. Also bytes, load times (wall) and the perplexities of the gate.
The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from benchmarks.engine.workload import CHUNK, CONTEXT, prompt
from benchmarks.record import record
from deploy.model_store import DEFAULT_MODEL, resolve_model
from diptych.config import WeightForm
from diptych.engine.engine import Engine
from diptych.engine.interface import EngineRequest, Kind
from diptych.engine.limits import Limits
from diptych.engine.torch_runner import TorchRunner
from diptych.messages import SamplingParams
from diptych.model_folder import ModelFolder

RESULTS = Path(__file__).parent / "results"
BLOCK_SIZE = 16
PREFILL_LENGTHS = (512, 2048)
NUM_PROMPTS = 3  # of each length in a round
BATCHES = (1, 4, 8, 16, 32)
NUM_STEPS = 24  # of each batch in a round
FORMS: tuple[WeightForm, ...] = get_args(WeightForm)
Rates = dict[WeightForm, dict[str, float]]  # tokens per second, by form and case


@dataclass(frozen=True, slots=True)
class Loaded:
    runner: TorchRunner
    timed: Timed
    seconds: float


class Timed:
    """One engine and the CPU seconds its steps take."""

    def __init__(self, runner: TorchRunner, max_context: int) -> None:
        self._engine = Engine(runner, Limits(CHUNK, 64, BLOCK_SIZE, max_context))
        self._num_requests = 0

    def prefill(self, length: int) -> float:
        """Seconds until a prompt's first token."""
        self._add(length, max_tokens=1)
        began = time.process_time()
        while self._engine.has_work:
            self._engine.step()
        return time.process_time() - began

    def start(self, batch: int) -> list[str]:
        """So many sequences, each past its first token and around `CONTEXT`."""
        requests = [self._add(CONTEXT - NUM_STEPS // 2, max_tokens=CONTEXT) for _ in range(batch)]
        started: set[str] = set()
        while len(started) < batch:
            started.update(update.request_id for update in self._engine.step().updates)
        return requests

    def step(self, batch: int) -> float:
        """Seconds of one step that decodes the whole batch and nothing else."""
        began = time.process_time()
        outcome = self._engine.step()
        if outcome.decode_rows != batch or outcome.computed_tokens != batch:
            raise RuntimeError(f"a step was to decode {batch} rows alone, but it computed {outcome.computed_tokens}")
        return time.process_time() - began

    def stop(self, requests: list[str]) -> None:
        for request in requests:
            self._engine.abort(request)
        while self._engine.has_work:
            self._engine.step()
        self._engine.clear_cache()

    def _add(self, length: int, max_tokens: int) -> str:
        self._num_requests += 1
        request_id = f"request {self._num_requests}"
        sampling = SamplingParams(max_tokens=max_tokens, seed=0, temperature=0.0)  # no stop token
        tokens = tuple(prompt(length, self._num_requests))
        self._engine.add(EngineRequest(request_id, Kind.LOCAL, tokens, sampling, bytes(32)))
        return request_id


def main() -> None:
    args = _arguments()
    folder = ModelFolder(resolve_model(args.model, os.environ, _say))
    loaded = {form: _load(folder, form) for form in FORMS}
    engines = {form: one.timed for form, one in loaded.items()}
    measure_prefill(engines, min(PREFILL_LENGTHS))  # warm
    numbers = summary([_round(engines) for _ in range(args.rounds)]) | _facts(loaded)
    if args.record:
        _say(f"recorded in {record(RESULTS, 'quantization', numbers)}")
    print(table(numbers))
    print(json.dumps(numbers))


def measure_prefill(engines: dict[WeightForm, Timed], length: int) -> dict[WeightForm, float]:
    turns = [{form: engine.prefill(length) for form, engine in engines.items()} for _ in range(NUM_PROMPTS)]
    return {form: length / statistics.median(turn[form] for turn in turns) for form in engines}


def measure_decode(engines: dict[WeightForm, Timed], batch: int) -> dict[WeightForm, float]:
    requests = {form: engine.start(batch) for form, engine in engines.items()}
    turns = [{form: engine.step(batch) for form, engine in engines.items()} for _ in range(NUM_STEPS)]
    for form, engine in engines.items():
        engine.stop(requests[form])
    return {form: batch / statistics.median(turn[form] for turn in turns) for form in engines}


def summary(rounds: list[Rates]) -> dict[str, object]:
    """Medians over the rounds: tokens per second by form and case, and int8's ratio to full, formed in each round."""
    numbers: dict[str, object] = {}
    for case in rounds[0]["full"]:
        for form in FORMS:
            numbers[f"{form}_{case}_tok_s"] = round(statistics.median(found[form][case] for found in rounds), 1)
        ratios = [found["int8"][case] / found["full"][case] for found in rounds]
        numbers[f"ratio_{case}"] = round(statistics.median(ratios), 3)
    return numbers


def table(numbers: dict[str, object]) -> str:
    cases = [name.removeprefix("ratio_") for name in numbers if name.startswith("ratio_")]
    lines = [f"{'tokens/CPU s':16}{'full':>10}{'int8':>10}{'ratio':>8}"]
    for case in cases:
        full, int8, ratio = (numbers[name] for name in (f"full_{case}_tok_s", f"int8_{case}_tok_s", f"ratio_{case}"))
        lines.append(f"{case:16}{full:>10}{int8:>10}{ratio:>8}")
    shown = {name for case in cases for name in (f"full_{case}_tok_s", f"int8_{case}_tok_s", f"ratio_{case}")}
    return "\n".join(lines + [f"{name}: {value}" for name, value in numbers.items() if name not in shown])


def _round(engines: dict[WeightForm, Timed]) -> Rates:
    rates: Rates = {form: {} for form in engines}
    for case, sizes, measure in (("prefill_", PREFILL_LENGTHS, measure_prefill), ("decode_b", BATCHES, measure_decode)):
        for size in sizes:
            for form, rate in measure(engines, size).items():
                rates[form][f"{case}{size}"] = rate
    return rates


def _facts(loaded: dict[WeightForm, Loaded]) -> dict[str, object]:
    quality = loaded["int8"].runner.quality
    if quality is None:
        raise RuntimeError("the gate did not run")
    facts: dict[str, object] = {
        "perplexity_full": round(quality.full, 4),
        "perplexity_int8": round(quality.quantized, 4),
        "perplexity_int8_over_full": round(quality.ratio, 5),
        "exact": all(one.runner.exact for one in loaded.values()),
    }
    for form, one in loaded.items():
        facts |= {f"{form}_weight_bytes": one.runner.weight_bytes, f"{form}_load_s": round(one.seconds, 2)}
    return facts


def _load(folder: ModelFolder, form: WeightForm) -> Loaded:
    capacity = (CONTEXT * max(BATCHES) * 5 // 4 // BLOCK_SIZE) * folder.spec.block_bytes(BLOCK_SIZE, 4)
    began = time.perf_counter()
    runner = TorchRunner.load(
        folder, kv_cache_bytes=capacity, block_size=BLOCK_SIZE, device="cpu", threads=1, weights=form
    )
    seconds = time.perf_counter() - began
    _say(f"{form}: {runner.weight_bytes / 1e6:.0f} MB, loaded in {seconds:.1f} s, {runner.attention_name}")
    return Loaded(runner, Timed(runner, folder.spec.max_context), seconds)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default=DEFAULT_MODEL, help="a Hugging Face folder")
    parser.add_argument("--rounds", type=int, default=3, help="about two minutes each for the default model")
    parser.add_argument("--record", action="store_true", help="keep the numbers in benchmarks/results")
    return parser.parse_args()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
