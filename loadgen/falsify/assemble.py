"""From a command line's values to what a trial is made of: its design, and what it runs on."""

from __future__ import annotations

import asyncio
import os
import tomllib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec

from diptych.engine.sim.timing import FittedTiming, FixedTiming
from diptych.engine.sim.timing_spec import deployment_of, parse_timing
from loadgen.experiment.run import Backend
from loadgen.experiment.served import Served
from loadgen.experiment.shape import Say
from loadgen.experiment.system import StartedCluster, running_cluster
from loadgen.experiment.tables import ClusterSpec, SimSpec
from loadgen.falsify.attended import Attended
from loadgen.falsify.design import Traffic
from loadgen.planner.engines import largest_block
from loadgen.planner.options import EngineOptions
from loadgen.planner.traffic import default_jitter_ms, digest_of, is_generator, read_workload
from loadgen.planner.usage import WrongUsage, check_times
from loadgen.workloads.workload import Workload


@dataclass(frozen=True, slots=True)
class Running:
    """A cluster that somebody else started. An empty URL: the one that this user runs."""

    admin_url: str = ""
    admin_key: str = ""


def read_traffic(
    trace: str,
    *,
    num_requests: int | None,
    rate: float,
    speedup: float,
    jitter_ms: float | None,
    limits: tuple[int | None, int | None],
    warmup_share: float,
) -> tuple[Traffic, Workload]:
    """
    Args:
        num_requests: of a generator, which would never end; a file is read whole.
        limits: tokens in and out; longer ones are cut by the load generator.

    Raises:
        WrongUsage: a rate or a speed-up makes no sense.
        ValueError: the trace is not of its format, or has no times and there is no rate.
        OSError: the file cannot be read.
    """
    check_times(rate, speedup)
    _, workload = read_workload(trace, num_requests if is_generator(trace) else None)
    if not workload.timed and not rate:
        raise ValueError(f"{trace} has no times of its own; give a rate")
    max_input, max_output = limits
    is_cut = [
        (max_input is not None and each.input_length > max_input)
        or (max_output is not None and each.output_length > max_output)
        for each in workload.requests
    ]
    return (
        Traffic(
            trace=Path(trace).name,
            sha256=digest_of(workload.requests, workload.labels),
            requests_in_trace=len(workload.requests),
            rate=rate,
            speedup=speedup,
            jitter_ms=(default_jitter_ms(workload.requests) if jitter_ms is None else jitter_ms) * (not rate),
            max_input=max_input,
            max_output=max_output,
            num_cut=sum(is_cut),
            warmup_share=warmup_share,
        ),
        workload,
    )


def read_cluster(file: Path | None, model: str, cores_per_worker: int) -> ClusterSpec:
    """
    Args:
        model, cores_per_worker: in place of the file's; empty and 0: the file's, or the defaults.

    Raises:
        ValueError: the file is no such description.
        OSError: it cannot be read.
    """
    said: dict[str, Any] = {"model": model, "cores_per_worker": cores_per_worker}
    said = {name: value for name, value in said.items() if value}
    if file is None:
        return ClusterSpec(**said)
    try:
        data = tomllib.loads(file.read_text(encoding="utf-8"))
        if not isinstance(data.get("cluster"), dict):
            raise ValueError(f"{file.name} has no table [cluster]; the fields are those of ClusterSpec")
        return msgspec.convert({**data["cluster"], **said}, ClusterSpec)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError) as error:
        raise ValueError(f"{file.name}: {error}") from None


def options_of(spec: ClusterSpec) -> dict[str, Any]:
    """What decides of a cluster that is started, as plain data; without where its Redis is, and the key to it."""
    return {name: value for name, value in msgspec.to_builtins(spec).items() if name != "redis_url"}


def started(spec: ClusterSpec, folder: Path, api_key: str, ca_file: str, say: Say) -> Backend:
    system = StartedCluster(spec.described(), folder / "cluster", os.environ, say, spec.ray_address)
    served = Served(system, lambda: system.door, _headers(api_key), ca_file=ca_file)
    return Attended(served, lambda: system.door)


def running(which: Running, api_key: str, ca_file: str, say: Say) -> Backend:
    """
    Raises:
        SystemUnavailable: this user runs none, or more than one.
        OSError: a certificate cannot be read.
    """
    system = running_cluster(which.admin_url, which.admin_key, ca_file, os.environ, say)
    served = Served(system, lambda: system.door, _headers(api_key), ca_file=ca_file)
    return Attended(served, lambda: system.door)


def served_model(which: Running, ca_file: str, say: Say) -> str:
    """What a running cluster serves, asked before anything is registered.

    Raises:
        SystemUnavailable: this user runs none, or more than one, or its admin door does not say.
        OSError: a certificate cannot be read.
    """

    async def ask() -> str:
        system = running_cluster(which.admin_url, which.admin_key, ca_file, os.environ, say)
        try:
            return (await system.door.status()).model
        finally:
            await system.close()

    return asyncio.run(ask())


def simulated(engine: EngineOptions, workload: Workload) -> SimSpec:
    """What is played: with a measured timing's numbers, not its file's name.

    Raises:
        WrongUsage: the timing is not known, or the blocks do not fit the trace's.
    """
    try:
        return _simulated(engine, workload)
    except ValueError as error:
        raise WrongUsage(str(error)) from None


def _simulated(engine: EngineOptions, workload: Workload) -> SimSpec:
    timing, known = parse_timing(engine.timing), deployment_of(engine.timing)
    of_tables: dict[str, Any] = (
        {"model": known.model, "gpu": known.gpu, "tensor_parallel": known.tensor_parallel} if known else {}
    )
    if known is None and not (engine.kv_tokens and engine.kv_bytes_per_token):
        raise ValueError(f"timing {engine.timing!r} says nothing of KV: give --kv-tokens and --kv-bytes-per-token")
    per_token = engine.kv_bytes_per_token or (known.kv_bytes_per_token if known else 0)
    return SimSpec(
        **of_tables,
        fitted={} if known else closed_forms(timing),
        kv_bytes_per_token=per_token,
        kv_cache_bytes=engine.kv_tokens * per_token,
        block_size=largest_block([each.block_tokens for each in workload.requests], engine.block_size),
        max_running=engine.max_running,
        wire_bytes_per_s=engine.wire_gb_per_s * 1e9,
        hop_ms=engine.one_way_ms,
    )


def closed_forms(timing: object) -> dict[str, float]:
    """A timing model as `FittedTiming`'s fields.

    Raises:
        ValueError: it cannot be said so.
    """
    if isinstance(timing, FittedTiming):
        return asdict(timing)
    if isinstance(timing, FixedTiming) and timing.prefill_ms >= timing.decode_ms:  # a mixed step takes the greater base
        per_token_ms = timing.prefill_us_per_token / 1e3
        return asdict(FittedTiming(timing.prefill_ms, per_token_ms, 0.0, timing.decode_ms, 0.0, 0.0))
    raise ValueError(
        "a simulated trial needs a fit:, fitted: or measured: timing, or a fixed: one with prefill ≥ decode"
    )


def _headers(api_key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {api_key}"} if api_key else {}
