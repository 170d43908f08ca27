"""`diptych falsify` and `python -m loadgen falsify`: does it pay on my traffic? Measured, with the plan fixed first."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from typing import Annotated, Any, TextIO

import msgspec
from cyclopts import Parameter

from loadgen.client.run import ShardFailed
from loadgen.client.told import cancel_when_told
from loadgen.experiment.run import Backend
from loadgen.experiment.shape import Say, SystemUnavailable
from loadgen.experiment.simulated import Simulation
from loadgen.experiment.tables import ClusterSpec, SimSpec
from loadgen.experiment.told import was_told
from loadgen.falsify import assemble
from loadgen.falsify.design import Client, Design, make_design, write_design
from loadgen.falsify.program import program
from loadgen.falsify.questions import Question
from loadgen.falsify.report import as_data, design_text, page, verdict_text
from loadgen.falsify.trial import Stopped, Trial
from loadgen.falsify.verdict import EXIT_STATUS, Verdict, judge
from loadgen.planner.options import DEFAULT_ENGINE, EngineOptions, parse_slo
from loadgen.planner.usage import WRONG_USAGE, WrongUsage

RUNS = "block-*.run.json"
FAILED = 1  # nothing was measured to the end
REGISTERED = 3  # nothing was to be measured: no verdict, so not the status of one


def falsify(
    trace: str,
    /,
    *,
    slo: str,
    question: Question = "disaggregation",
    prefill: int = 1,
    decode: int = 1,
    blocks: int = 8,
    requests: int = 0,
    minimal_effect: float = 0.05,
    rate: float = 0.0,
    speedup: float = 1.0,
    jitter_ms: float = -1.0,
    warmup: float = 0.1,
    max_input: int = 0,
    max_output: int = 0,
    max_batch_tokens: int = 512,
    seed: int = 0,
    model: str = "",
    cores_per_worker: int = 0,
    cluster: Path | None = None,
    running: Annotated[bool, Parameter(negative=())] = False,
    admin: str = "",
    admin_key: Annotated[str, Parameter(env_var="DIPTYCH_ADMIN_KEY", show_default=False)] = "",
    api_key: Annotated[str, Parameter(env_var="OPENAI_API_KEY", show_default=False)] = "",
    ca: str = "",
    vocabulary_size: int = 32_000,
    timeout: float = 600.0,
    processes: int = 1,
    lag_limit_ms: float = 10.0,
    simulate: Annotated[bool, Parameter(negative=())] = False,
    engine: EngineOptions = DEFAULT_ENGINE,
    register_only: Annotated[bool, Parameter(negative=())] = False,
    json: Annotated[bool, Parameter(negative=())] = False,
    out: Path = Path("falsify"),
) -> int:
    """Measure, on your own traffic, whether disaggregation or cache-aware placement pays. The plan is fixed first.

    Writes design.json before the first request, then a file for each run, verdict.json and verdict.html, into OUT.

    Exit status: 0 pays, 10 does not pay, 11 cannot tell; 1 it could not be measured, 2 wrong usage, 3 registered only.

    Parameters
    ----------
    trace
        A file in any format of `loadgen run` (recognised, or FORMAT:FILE).
    slo
        ttft_ms=1000,tpot_ms=50: what a good request is, both at once.
    question
        disaggregation: PREFILL and DECODE workers against as many colocated ones. cache-aware: the router's placement
        against placement by load alone, on the same workers.
    prefill, decode
        Workers of the arm that is asked about.
    blocks
        Pairs of runs, an even number: each on a stretch of the trace of its own, in an order that is drawn.
    requests
        Of the trace in each block; 0: all, divided among the blocks.
    minimal_effect
        The least gain worth having, as a share of all requests.
    rate
        Requests/s, Poisson, instead of the recorded times.
    speedup
        Of the recorded times. Other than 1 it is another load than the one recorded.
    jitter_ms
        Of the recorded times; -1: what their rounding leaves open, at least the mean gap.
    warmup
        Share of each block that is sent and not measured.
    max_input, max_output
        Tokens; longer ones are cut, and counted in the plan. 0: no limit.
    max_batch_tokens
        Of every worker of both arms: the longest prefill chunk.
    seed
        Of order and arrivals.
    model, cores_per_worker
        Of a cluster that is started for this, in place of CLUSTER's. Without either: smollm2-135m-instruct, 1 core.
    cluster
        TOML with more about it: the table [cluster] of an experiment (loadgen/experiment/tables.py).
    running
        Use this user's running cluster instead. It can be scaled, so it answers only about disaggregation.
    admin, admin_key
        Its admin door, if it is another's.
    api_key
        Sent to the HTTP door as bearer token; never written to a file.
    ca
        PEM file of the authority that signed the certificates of https doors, if it is a private one.
    vocabulary_size
        Token ids are from 256 up to this.
    timeout
        Seconds for one request.
    processes, lag_limit_ms
        Of the load generator: how many, and how late 1 % of its requests may be sent.
    simulate
        Measure nothing: play both arms in virtual time, with the engine below.
    register_only
        Write and print the plan, and stop, with status 3: the same command without this flag then measures it.
    json
        Print one JSON object at the end, and the plan on standard error.
    out
        Folder. It must not hold another design.
    """
    say = _say_since(time.monotonic())
    try:
        wanted, spec = parse_slo(slo), assemble.read_cluster(cluster, model, cores_per_worker)
        is_running = running or bool(admin)
        if is_running and question != "disaggregation":
            raise WrongUsage("a running cluster cannot change its policy; leave --running and --admin out")
        traffic, workload = assemble.read_traffic(
            trace,
            num_requests=blocks * requests or None,
            rate=rate,
            speedup=speedup,
            jitter_ms=None if jitter_ms < 0 else jitter_ms,
            limits=(max_input or None, max_output or None),
            warmup_share=warmup,
        )
        played = assemble.simulated(engine, workload) if simulate else None
        which = assemble.Running(admin, admin_key)
        design = make_design(
            question,
            traffic,
            prefill=prefill,
            decode=decode,
            max_batch_tokens=max_batch_tokens,
            blocks=blocks,
            requests=requests,
            limits=(wanted.ttft_ms, wanted.tpot_ms),
            minimal_effect=minimal_effect,
            seed=seed,
            simulated=simulate,
            program=program(),
            model=assemble.served_model(which, ca, say) if is_running and not played else "",
            client=Client(
                vocabulary_size=vocabulary_size, timeout_s=timeout, processes=processes, lag_limit_ms=lag_limit_ms
            ),
            **_system(played, engine.timing, is_running, admin, spec),
        )
        _register(design, out, sys.stderr if json else sys.stdout)
        if register_only:
            return REGISTERED
        if played:
            backend: Backend = Simulation(played)
        elif is_running:
            backend = assemble.running(which, api_key, ca, say)
        else:
            backend = assemble.started(spec, out, api_key, ca, say)
        trial = Trial(design, workload, backend, out, say)
        stopped = asyncio.run(_run(trial, backend))
    except (ValueError, OSError, SystemUnavailable, ShardFailed) as error:
        print(f"falsify: {error}", file=sys.stderr)
        return WRONG_USAGE if isinstance(error, WrongUsage) else FAILED
    verdict = judge(design, trial.blocks, stopped=stopped)
    _write(trial, design, verdict, out, json)
    return EXIT_STATUS[verdict.answer]


def _system(played: SimSpec | None, timing: str, is_running: bool, admin: str, spec: ClusterSpec) -> dict[str, Any]:
    """What runs, in words and with all that it is given."""
    if played:
        return {"system": f"simulated, {timing}", "options": msgspec.to_builtins(played)}
    if is_running:
        return {"system": "a running cluster, scaled", "options": {"admin": admin or "this user's"}}
    name = f"{spec.model}, {spec.cores_per_worker} core(s) a worker, started for this"
    return {"system": name, "options": assemble.options_of(spec)}


def _register(design: Design, out: Path, where: TextIO) -> None:
    """
    Raises:
        ValueError: the folder holds another design, or runs of this one: their figures may have been seen.
    """
    path = out / "design.json"
    there = msgspec.json.decode(path.read_bytes(), type=dict[str, Any]) if path.exists() else {}
    if there and there.get("sha256") != design.digest:
        raise ValueError(f"{out} holds another design ({_apart(there, design)}); give a new folder with --out")
    what = "a verdict on" if (out / "verdict.json").exists() else "runs of" if any(out.glob(RUNS)) else ""
    if what:
        raise ValueError(f"{out} holds {what} this design already; a second try is another trial: give a new --out")
    out.mkdir(parents=True, exist_ok=True)
    write_design(design, path)
    print(design_text(design), file=where, flush=True)


def _apart(there: dict[str, Any], design: Design) -> str:
    """In which fields."""
    old, new = there.get("design", {}), msgspec.json.decode(msgspec.json.encode(design))
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    return f"it differs in {', '.join(names)}"


async def _run(trial: Trial, backend: Backend) -> bool:
    """Whether it was stopped before its end."""
    cancel_when_told()
    try:
        await trial.run()
    except (asyncio.CancelledError, Stopped):
        return True
    except ShardFailed:
        if await was_told():
            return True
        raise
    finally:
        await backend.close()
    return False


def _write(trial: Trial, design: Design, verdict: Verdict, out: Path, json: bool) -> None:
    data = msgspec.json.encode(as_data(design, trial.blocks, verdict, trial.salt))
    (out / "verdict.json").write_bytes(msgspec.json.format(data, indent=2) + b"\n")
    (out / "verdict.html").write_text(page(design, trial.blocks, verdict), encoding="utf-8")
    print(data.decode() if json else verdict_text(design, trial.blocks, verdict))


def _say_since(began_s: float) -> Say:
    return lambda text: print(f"[{time.monotonic() - began_s:6.0f} s] {text}", file=sys.stderr, flush=True)
