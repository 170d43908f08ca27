"""What guessing ahead is worth: `python -m benchmarks.speculation MODEL_FOLDER [--guesses 0 4 8] [--batch 1 8]`.

Decodes text that copies from its prompt and text that does not, greedy and sampled, with and without guesses, on the
same model in one process and thread. The configurations take turns, and time is the process's own CPU time, so that a
busy neighbour does not count (it still competes for memory). Prints decode tokens per CPU second, the share of guesses
that were right, and whether the output was the same to the bit; the last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from dataclasses import dataclass, field
from pathlib import Path

from diptych.chat_template import ChatTemplate
from diptych.engine.engine import Engine
from diptych.engine.interface import EngineRequest, Kind
from diptych.engine.limits import Limits
from diptych.engine.torch_runner import TorchRunner
from diptych.messages import SamplingParams
from diptych.model_folder import ModelFolder
from diptych.tokenizer import Tokenizer

BLOCK_SIZE = 16
QUESTIONS = (
    "Why is the sky blue?",
    "Write a short story about a lighthouse keeper.",
    "How does a bicycle stay upright?",
    "Give me advice for a job interview.",
    "What happened in the French Revolution?",
    "Describe a market on a rainy morning.",
    "Explain photosynthesis to a child.",
    "Why do people dream?",
)
NAMES = "Ada Bruno Chiara Dmitri Elif Farah Goran Hana Iker Jonas Katya Liam Mina Noor Otto Petra"
CITIES = "Lisbon Oslo Kyoto Quito Perth Dakar Turin Minsk Leeds Tunis Sofia Riga Bergen Nantes Malmo Graz"
TRADES = "baker nurse pilot farmer tailor welder teacher printer potter clerk sailor mason"


@dataclass
class Measured:
    tokens_per_s: list[float] = field(default_factory=list)
    drafted: int = 0
    accepted: int = 0
    steps: int = 0
    output: dict[str, list[int]] = field(default_factory=dict)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--guesses", type=int, nargs="+", default=[0, 4, 8])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--tokens", type=int, default=128, help="longest completion")
    parser.add_argument("--turns", type=int, default=3, help="of each configuration; the fastest counts")
    args = parser.parse_args()
    folder = ModelFolder(args.model)
    runner = TorchRunner.load(folder, kv_cache_bytes=512 << 20, block_size=BLOCK_SIZE, device="cpu", threads=1)
    results = []
    for text, asks in (("copies", copying()), ("ordinary", list(QUESTIONS))):
        prompts = [encode(folder, ask) for ask in asks]
        for temperature in (0.0, 0.7):
            for batch in args.batch:
                found = {guesses: Measured() for guesses in args.guesses}
                for _ in range(args.turns):
                    for guesses, measured in found.items():
                        decode(runner, prompts[:batch], guesses, temperature, args.tokens, measured)
                results += [
                    report(text, temperature, batch, guesses, measured, found[args.guesses[0]])
                    for guesses, measured in found.items()
                ]
    print(json.dumps(results))


def copying() -> list[str]:
    """Lists to be repeated: nothing a model could know by heart."""
    rng = random.Random(0)
    names, cities, trades = NAMES.split(), CITIES.split(), TRADES.split()
    lists = [
        [f"- {rng.choice(names)} from {rng.choice(cities)} is a {rng.choice(trades)}." for _ in range(10)]
        for _ in range(8)
    ]
    return ["Repeat this list exactly, word for word:\n" + "\n".join(lines) for lines in lists]


def encode(folder: ModelFolder, text: str) -> list[int]:
    template, tokenizer = ChatTemplate.from_folder(folder.path), Tokenizer.from_folder(folder.path)
    prompt = template.render([{"role": "user", "content": text}], add_generation_prompt=True)
    return tokenizer.encode(prompt, add_special=False)


def decode(
    runner: TorchRunner, prompts: list[list[int]], guesses: int, temperature: float, max_tokens: int, into: Measured
) -> None:
    """One turn. Timed from the moment when every prompt has its first token."""
    engine = Engine(runner, Limits(4_096, 64, BLOCK_SIZE, 4_096, speculative_tokens=guesses))
    sampling = SamplingParams(max_tokens=max_tokens, seed=1, temperature=temperature, stop_token_ids=(2,))
    for i, prompt in enumerate(prompts):
        engine.add(EngineRequest(str(i), Kind.LOCAL, tuple(prompt), sampling, bytes(32)))
    output = {update.request_id: list(update.token_ids) for update in engine.step().updates}
    num_tokens, began = 0, time.process_time()
    while engine.has_work:
        for update in engine.step().updates:
            output[update.request_id] += update.token_ids
            num_tokens += len(update.token_ids)
    into.tokens_per_s.append(num_tokens / (time.process_time() - began))
    stats = engine.stats()
    into.drafted, into.accepted, into.steps = (
        stats.drafted_tokens_total,
        stats.accepted_tokens_total,
        stats.steps_total,
    )
    into.output = output


def report(
    text: str, temperature: float, batch: int, guesses: int, measured: Measured, baseline: Measured
) -> dict[str, float | str | bool]:
    rate, plain = max(measured.tokens_per_s), max(baseline.tokens_per_s)
    result: dict[str, float | str | bool] = {
        "text": text,
        "temperature": temperature,
        "batch": batch,
        "guesses": guesses,
        "tok_s": round(rate, 1),
        "ratio": round(rate / plain, 3),
        "accepted": round(measured.accepted / max(1, measured.drafted), 3),
        "drafted": measured.drafted,
        "tokens": sum(map(len, measured.output.values())),
        "steps": measured.steps,
        "same_output": measured.output == baseline.output,
    }
    print("  ".join(f"{name} {value}" for name, value in result.items()), flush=True)
    return result


if __name__ == "__main__":
    main()
