"""`python -m loadgen replay`: one trace, in any format that loadgen reads, through one simulated cluster."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import msgspec
from cyclopts import Parameter

from diptych.engine.sim.fits import deployment
from diptych.engine.sim.timing_spec import parse_timing
from loadgen.planner.traffic import Traffic, load_traffic
from loadgen.sim.cluster import simulate
from loadgen.sim.config import Fleet, SimConfig, config_for, with_queue
from loadgen.sim.metrics import Latency, Limits, Summary, summarise
from loadgen.sim.policies import policy_named
from loadgen.traces.mooncake import BLOCK_TOKENS, read_mooncake
from loadgen.traces.recognise import recognise

WHOLE_PROMPT = 1 << 20  # tokens; a step that takes any prompt at once


def replay(
    trace: Path,  # or FORMAT:FILE
    /,
    *,
    fleet: str = "8",
    policy: str = "min_ttft",
    fixed_timing: str | None = None,
    timing: str | None = None,
    model: str = "nvidia/Llama-3.1-70B-Instruct-FP8",
    gpu: str = "h100_sxm",
    tensor_parallel: int = 4,
    block_size: int = 0,
    kv_blocks: int = 0,
    max_batch_tokens: int = 0,
    max_running: int = 256,
    trace_block_tokens: int = BLOCK_TOKENS,
    rate: float = 0.0,
    limit: int | None = None,
    jitter_ms: float = 0.0,
    speedup: float = 1.0,
    seed: int = 0,
    ttft_limit_ms: float = 5_000.0,
    tpot_limit_ms: float = 50.0,
    queue: str = "none",
    step_by_step: Annotated[bool, Parameter(negative=())] = False,
    json: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Replay a trace through a simulated cluster, in virtual time.

    Parameters
    ----------
    trace
        A file. Mooncake's format has one JSON object a line: timestamp (ms), input_length, output_length, hash_ids; the
        others of `loadgen run` are recognised, or named (FORMAT:FILE). Without hash ids prompts share nothing.
    fleet
        "8": eight workers that compute prompts, in chunks, and decode. "4P+4D": four prefill and four decode workers.
    policy
        min_ttft (the router's own), min_ttft_remote (never computes prompts on decode workers), least_load,
        power_of_two, prefix_only, round_robin or random.
    fixed_timing
        "prefill_ms=100,decode_ms=25": a step with a prompt in it takes prefill_ms, any other decode_ms, whatever its
        size; optionally prefill_us_per_token=20 on top. Prompts are then not chunked and messages take no time; KV that
        is transferred does.
    timing
        Any other timing model, as simulated workers take them: fit:MODEL/GPU, or measured:FILE that `timing` wrote.
    model, gpu, tensor_parallel
        Whose fitted step times to use, unless others are given. They set KV sizes in any case.
    block_size
        Tokens in a KV block of the engine; 0: the trace's.
    kv_blocks
        KV blocks of a worker; 0: what fits beside the model's weights.
    max_batch_tokens
        Tokens in one step, which is also the longest prefill chunk; 0: 8192, or any number with fixed timing.
    max_running
        Sequences in one step.
    trace_block_tokens
        Tokens that one hash id of a Mooncake-format trace stands for.
    rate
        Requests/s, Poisson, instead of the recorded times.
    limit
        Only the first so many requests.
    jitter_ms
        Delays each request by up to this, at random: for traces with coarse timestamps.
    speedup
        Divides all times of arrival.
    seed
        Of jitter and of the random policy.
    ttft_limit_ms, tpot_limit_ms
        What counts as good, both at once.
    queue
        none: all are placed when they come. wait: the router's queue, with its defaults. refuse: the same, and who
        cannot have its first token within ttft_limit_ms is refused at once.
    step_by_step
        Take no decode steps in runs: the same results, later.
    json
        Print one JSON object and nothing else.
    """
    try:
        traffic = _traffic(str(trace), trace_block_tokens, limit, rate, speedup, jitter_ms)
        config = _config(
            fleet=fleet,
            policy=policy,
            fixed_timing=fixed_timing,
            timing=timing,
            engine=(model, gpu, tensor_parallel),
            block_size=block_size or traffic.block_tokens,
            kv_blocks=kv_blocks,
            max_batch_tokens=max_batch_tokens,
            max_running=max_running,
            seed=seed,
        )
        config = with_queue(config, queue, policy, ttft_limit_ms)
        workload = traffic.arrivals(seed)
        began = time.perf_counter()
        cluster = simulate(replace(config, bulk=not step_by_step), workload)
    except (ValueError, OSError) as error:
        print(f"loadgen replay: {error}", file=sys.stderr)
        return 2
    wall_s = time.perf_counter() - began
    summary = summarise(cluster, Limits(ttft_limit_ms, tpot_limit_ms))
    about = {
        "trace": traffic.name,
        "fleet": str(config.fleet),
        "policy": policy,
        "queue": queue,
        "seed": seed,
        "timing": fixed_timing or timing or f"{model} {gpu} TP{tensor_parallel}",
        "wall_s": wall_s,
        "num_events": cluster.loop.num_events,
    }
    print(_as_json(about, summary) if json else _as_text(about, summary))
    return 0


def _config(
    *,
    fleet: str,
    policy: str,
    fixed_timing: str | None,
    timing: str | None,
    engine: tuple[str, str, int],
    block_size: int,
    kv_blocks: int,
    max_batch_tokens: int,
    max_running: int,
    seed: int,
) -> SimConfig:
    if fixed_timing is not None and timing is not None:
        raise ValueError("--fixed-timing and --timing are two ways to say the same; give only one")
    config = config_for(
        deployment(*engine),
        Fleet.parse(fleet),
        policy_named(policy, seed),
        block_size=block_size,
        max_batch_tokens=max_batch_tokens or (8_192 if fixed_timing is None else WHOLE_PROMPT),
        max_running=max_running,
    )
    if timing is not None:
        config = replace(config, timing=parse_timing(timing))
    if fixed_timing is not None:
        config = replace(config, timing=parse_timing(f"fixed:{fixed_timing}"), hop_ms=0.0)
    return replace(config, num_blocks=kv_blocks or config.num_blocks)


def _traffic(
    trace: str, block_tokens: int, limit: int | None, rate: float, speedup: float, jitter_ms: float
) -> Traffic:
    """Mooncake's files are read here, because they alone do not say how many tokens a hash id stands for."""
    path = Path(trace.removeprefix("mooncake:"))
    if not (trace.startswith("mooncake:") or (path.exists() and recognise(path) == "mooncake")):
        return load_traffic(trace, num_requests=limit, rate=rate, speedup=speedup, jitter_ms=jitter_ms)
    requests = read_mooncake(path, block_tokens, limit)
    if not requests:
        raise ValueError(f"there is no request in {path.name}")
    return Traffic(path.name, f"mooncake:{path}", requests, [""] * len(requests), rate, jitter_ms, speedup)


def _as_json(about: dict[str, Any], summary: Summary) -> str:
    return msgspec.json.encode({**about, **msgspec.structs.asdict(summary)}).decode()


def _as_text(about: dict[str, Any], summary: Summary) -> str:
    lines = [f"{name:<24}{value}" for name, value in about.items()]
    for name, value in msgspec.structs.asdict(summary).items():
        if isinstance(value, Latency):
            value = f"mean {value.mean:.2f}  p50 {value.p50:.2f}  p90 {value.p90:.2f}  p99 {value.p99:.2f}"
        elif isinstance(value, float):
            value = f"{value:.4g}"
        lines.append(f"{name:<24}{value}")
    return "\n".join(lines)
