"""Whether clients that others wrote see what our load generator sees: the same load, in turns, on one server.

    python -m benchmarks.cross_check http://127.0.0.1:8000 --model NAME --model-folder DIR \\
        --aiperf A/bin/aiperf --guidellm G/bin/guidellm

Each client sends the same number of requests of the same lengths at the same constant rate, in turns and `--rounds`
times. Prompts differ, so that no client finds another's in the cache. Of each figure the median over the rounds is
compared. The last line is JSON; `worst_difference` is the largest of all, as a share of ours.

The other clients want environments of their own (`pip install aiperf`, `pip install guidellm`). They run offline here:
the tokenizer is given to them as a Hugging Face cache of one model.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.record import record

ROOT = Path(__file__).resolve().parents[1]
CACHED = "local/model"  # what the tokenizer is called in the cache
FIGURES = ("ttft_mean_ms", "tpot_mean_ms", "output_tokens_per_s")
TOKENIZER_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json")
TIMEOUT_S = 900.0
NOTHING: dict[str, str] = {}
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}

Figures = dict[str, float]


@dataclass(frozen=True)
class Load:
    url: str
    model: str
    rate: float  # requests a second, constant
    num_requests: int
    input_tokens: int
    output_tokens: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--model", required=True, help="its name at the server")
    parser.add_argument("--model-folder", type=Path, required=True, help="with its tokenizer")
    parser.add_argument("--aiperf", default="", help="the program; left out when empty")
    parser.add_argument("--guidellm", default="", help="likewise")
    parser.add_argument("--rate", type=float, default=1.0)
    parser.add_argument("--requests", type=int, default=40)
    parser.add_argument("--input", type=int, default=128)
    parser.add_argument("--output", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--record", action="store_true", help="keep the result in benchmarks/results")
    args = parser.parse_args()
    load = Load(args.url, args.model, args.rate, args.requests, args.input, args.output)
    with tempfile.TemporaryDirectory() as scratch:
        cache = _tokenizer_cache(args.model_folder, Path(scratch))
        clients: dict[str, Callable[[Path, int], Figures]] = {"ours": lambda out, seed: ours(load, out, seed)}
        if args.aiperf:
            clients["aiperf"] = lambda out, seed: aiperf(args.aiperf, load, cache, out, seed)
        if args.guidellm:
            clients["guidellm"] = lambda out, seed: guidellm(args.guidellm, load, args.model_folder, out, seed)
        rounds: dict[str, list[Figures]] = {name: [] for name in clients}
        for turn in range(args.rounds):
            for name, run in clients.items():
                out = Path(scratch) / f"{name}-{turn}"
                out.mkdir()
                rounds[name].append(run(out, 1_000 + turn))
                print(name, rounds[name][-1], flush=True)
    numbers = compared(rounds) | {"load": vars(load) | {"url": "", "model": args.model}}
    if args.record:
        print(record(ROOT / "benchmarks/results", "cross-check", numbers))
    print(json.dumps(numbers))


def compared(rounds: Mapping[str, list[Figures]]) -> dict[str, Any]:
    """Medians over the rounds, and how far others are from ours, as a share of ours."""
    medians = {
        name: {figure: statistics.median(each[figure] for each in runs) for figure in FIGURES}
        for name, runs in rounds.items()
    }
    differences = {
        name: {figure: medians[name][figure] / medians["ours"][figure] - 1 for figure in FIGURES}
        for name in medians
        if name != "ours"
    }
    worst = max((abs(share) for each in differences.values() for share in each.values()), default=0.0)
    return {"medians": medians, "differences": differences, "worst_difference": worst, "rounds": dict(rounds)}


def ours(load: Load, out: Path, seed: int) -> Figures:
    workload = f"independent:input={load.input_tokens},output={load.output_tokens}"
    options: dict[str, object] = {
        "model": load.model,
        "workload": workload,
        "rate": load.rate,
        "arrivals": "constant",
        "seed": seed,
    }
    options |= {"requests": load.num_requests, "name": "ours", "out": out}
    _run([sys.executable, "-m", "loadgen", "run", load.url, "--continuous-usage"], options)
    lines = (out / f"ours-{seed}.requests.jsonl").read_text().splitlines()
    requests = [json.loads(line) for line in lines]
    tokens = sum(request["output_tokens"] for request in requests)
    span_ms = max(request["intended_ms"] + request["e2e_ms"] for request in requests)
    tpots = [(request["e2e_ms"] - request["ttft_ms"]) / (request["output_tokens"] - 1) for request in requests]
    return {
        "ttft_mean_ms": statistics.fmean(request["ttft_ms"] for request in requests),
        "tpot_mean_ms": statistics.fmean(tpots),
        "output_tokens_per_s": tokens / span_ms * 1_000,
    }


def aiperf(program: str, load: Load, cache: Path, out: Path, seed: int) -> Figures:
    options: dict[str, object] = {"model": load.model, "url": load.url, "endpoint-type": "completions"}
    options |= {"tokenizer": CACHED, "ui": "none"}
    options |= {"arrival-pattern": "constant", "request-rate": load.rate, "request-count": load.num_requests}
    options |= {"synthetic-input-tokens-mean": load.input_tokens, "synthetic-input-tokens-stddev": 0}
    options |= {"output-tokens-mean": load.output_tokens, "output-tokens-stddev": 0, "random-seed": seed}
    options |= {"extra-inputs": "ignore_eos:true", "output-artifact-dir": out}
    _run(
        [program, "profile", "--streaming", "--use-server-token-count"], options, OFFLINE | {"HF_HUB_CACHE": str(cache)}
    )
    said = json.loads((out / "profile_export_aiperf.json").read_text())
    return {
        "ttft_mean_ms": said["time_to_first_token"]["avg"],
        "tpot_mean_ms": said["inter_token_latency"]["avg"],
        "output_tokens_per_s": said["output_token_throughput"]["avg"],
    }


def guidellm(program: str, load: Load, model_folder: Path, out: Path, seed: int) -> Figures:
    options = {
        "backend": f"kind=openai_http,target={load.url},model={load.model},request_format=/v1/completions",
        "profile": f"kind=constant,rate={load.rate:g}",
        "constraint": f"kind=max_requests,count={load.num_requests}",
        "data": f"kind=synthetic_text,prompt_tokens={load.input_tokens},output_tokens={load.output_tokens}",
        "seed": f"kind=static,value={seed}",
        "tokenizer": f"kind=huggingface_auto,model={model_folder}",
        "output": f"kind=json,path={out}/report.json",
    }
    _run([program, "run", "--disable-console"], options, OFFLINE)
    metrics = json.loads((out / "report.json").read_text())["benchmarks"][0]["metrics"]

    def mean(name: str) -> float:
        return float(metrics[name]["successful"]["mean"])

    return {
        "ttft_mean_ms": mean("time_to_first_token_ms"),
        "tpot_mean_ms": mean("inter_token_latency_ms"),
        "output_tokens_per_s": mean("output_tokens_per_second"),
    }


def _tokenizer_cache(model_folder: Path, scratch: Path) -> Path:
    """A Hugging Face cache that holds one tokenizer."""
    cache = scratch / "hub"
    model = cache / f"models--{CACHED.replace('/', '--')}"
    snapshot = model / "snapshots" / "0"
    snapshot.mkdir(parents=True)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("0")
    for name in TOKENIZER_FILES:
        shutil.copy(model_folder / name, snapshot)
    return cache


def _run(command: list[str], options: Mapping[str, object], environment: dict[str, str] = NOTHING) -> None:
    """
    Raises:
        SystemExit: it failed; with the end of what it said.
    """
    done = subprocess.run(
        [*command, *(word for name, value in options.items() for word in (f"--{name}", str(value)))],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{command[0]} failed ({done.returncode}):\n{(done.stdout + done.stderr)[-3_000:]}")


if __name__ == "__main__":
    main()
