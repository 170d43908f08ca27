"""From a cell to the run that measures it. Pure."""

from __future__ import annotations

import hashlib
import math

from loadgen.arrivals import Arrivals, ClosedLoop, OpenLoop, Piece, TraceTimes, open_loop_times_ms
from loadgen.client.config import RunConfig
from loadgen.client.plan import window_ms
from loadgen.experiment.cells import Cell
from loadgen.experiment.spec import PLACEHOLDERS, Experiment, SpecError
from loadgen.experiment.tables import ArrivalsSpec

UNKNOWN_S = 30.0  # for a forecast, of a run that nothing says the length of


def run_config(
    experiment: Experiment, cell: Cell, seed: int, salt: int, target: tuple[str, str], attempt: int = 0
) -> RunConfig:
    """
    Args:
        salt: of the whole experiment. With the cell and the attempt it makes the run's own, so that no two runs have a
            prompt in common and no cache needs to be emptied between them; arrivals and lengths are the seed's alone,
            so that cells are compared on equal traffic.
        target: base URL, and the model's name there.
    """
    workload, arrivals, slo = experiment.workload, experiment.arrivals, experiment.slo
    return RunConfig(
        base_url=target[0],
        model=target[1],
        name=cell.key,
        workload=workload.what.format(**{name: getattr(cell, name) for name in PLACEHOLDERS}),
        arrivals=arrivals_of(cell, arrivals),
        num_requests=_num_requests(cell, arrivals),
        duration_s=None if arrivals.min_requests else arrivals.duration_s,
        warmup_s=arrivals.warmup_s,
        tail_s=arrivals.tail_s,
        seed=seed,
        salt=_salt(salt, cell.key, attempt),
        processes=arrivals.processes,
        endpoint=workload.endpoint,
        prompt=workload.prompt,
        vocabulary_size=workload.vocabulary_size,
        max_input=workload.max_input,
        max_output=workload.max_output,
        tokenizer=workload.tokenizer,
        continuous_usage=workload.continuous_usage,
        extra_body=workload.extra_body,
        timeout_s=arrivals.timeout_s,
        ttft_limit_ms=slo.ttft_ms,
        tpot_limit_ms=slo.tpot_ms,
        lag_limit_ms=arrivals.lag_limit_ms,
    )


def arrivals_of(cell: Cell, spec: ArrivalsSpec) -> Arrivals:
    if cell.concurrency is not None:
        return ClosedLoop(cell.concurrency)
    if cell.speedup is not None:
        return TraceTimes(cell.speedup, spec.jitter_ms)
    rate = cell.requests_per_s
    assert rate is not None  # the spec has one of the loads
    return OpenLoop((Piece(None if spec.min_requests else spec.duration_s, rate, rate),), spec.spacing, spec.burstiness)


def check_windows(experiment: Experiment) -> None:
    """Every run of it sends something that is measured, as far as that is known beforehand: of an open loop all, of a
    closed loop and a trace's own times where a duration ends them.

    Raises:
        SpecError: one does not, and what to change.
    """
    for cell in experiment.sweep.made():
        for seed in experiment.seeds:
            config = run_config(experiment, cell, seed, 0, ("http://nowhere", ""))
            try:
                window_ms(config, _last_ms(config))
            except ValueError as error:
                longer = "make warmup_s and tail_s shorter, or the run longer"
                raise SpecError(f"arrivals: {cell.key} with seed {seed}: {error}; {longer}") from None


def _last_ms(config: RunConfig) -> float:
    """When a run ends sending, at the latest.

    Raises:
        ValueError: it sends nothing.
    """
    end_ms = math.inf if config.duration_s is None else config.duration_s * 1e3
    if not isinstance(config.arrivals, OpenLoop):
        return end_ms
    times = open_loop_times_ms(config.arrivals, config.seed, config.num_requests)
    if not len(times) or times[0] >= end_ms:
        raise ValueError("no request is sent in this time")
    return end_ms if config.num_requests is None else min(end_ms, float(times[-1]))


def settle_config(config: RunConfig, num_workers: int, each: int) -> RunConfig:
    """A few requests of the same kind for workers that have just started; nothing of it is kept."""
    return RunConfig(
        base_url=config.base_url,
        model=config.model,
        workload=config.workload,
        arrivals=ClosedLoop(num_workers),
        num_requests=num_workers * each,
        salt=_salt(config.salt, "settle", 0),
        endpoint=config.endpoint,
        prompt=config.prompt,
        vocabulary_size=config.vocabulary_size,
        max_input=config.max_input,
        max_output=config.max_output,
        tokenizer=config.tokenizer,
        extra_body=config.extra_body,
        timeout_s=config.timeout_s,
    )


def planned_s(cell: Cell, spec: ArrivalsSpec) -> float:
    """For how long a run is going to send, about."""
    rate = cell.requests_per_s
    number = _num_requests(cell, spec)
    by_number = number / rate if number is not None and rate else None
    by_time = None if spec.min_requests else spec.duration_s
    return min([length for length in (by_time, by_number) if length is not None], default=UNKNOWN_S)


def _num_requests(cell: Cell, spec: ArrivalsSpec) -> int | None:
    if spec.min_requests is None or spec.duration_s is None:
        return spec.requests
    return max(spec.min_requests, round((cell.requests_per_s or 0.0) * spec.duration_s))


def _salt(salt: int, key: str, attempt: int) -> int:
    """31 bits: prompts take (salt << 32) + seed as one 63-bit number."""
    digest = hashlib.blake2b(f"{salt}/{key}/{attempt}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little") >> 1
