"""Whether a measured run was of the traffic that is planned for, and what differs if it was not.

Files are compared by what is in them, wherever they lie and whatever they are called; generators by their parameters,
because every seed draws other requests of the same kind. Jitter is no difference: seeds move times by as much.
"""

from __future__ import annotations

from collections.abc import Sequence

from loadgen.arrivals import Arrivals, OpenLoop, Piece, TraceTimes, describe
from loadgen.client.config import RunConfig
from loadgen.client.plan import make_plan
from loadgen.planner.traffic import Traffic
from loadgen.traces.mooncake import TraceRequest
from loadgen.workloads.generators import GENERATORS
from loadgen.workloads.spec import make_workload, parse_generators
from loadgen.workloads.workload import clipped

Limits = tuple[int | None, int | None]  # tokens in and out


def differences(config: RunConfig, traffic: Traffic) -> list[str]:
    """Each in words, the run's side first; none if the two are the same traffic.

    Raises:
        ValueError: the run's plan cannot be made again.
        OSError: the trace that it was made of cannot be read.
    """
    theirs: Limits = (config.max_input, config.max_output)
    requests, limits = _requests(config, theirs, traffic)
    times = _times(config.arrivals, OpenLoop(_level(traffic.rate)) if traffic.rate else TraceTimes(traffic.speedup))
    counts = len(make_plan(config).requests), len(traffic.requests)
    number = f"{counts[0]} requests, and here {counts[1]}" * (counts[0] != counts[1])
    return list(filter(None, (requests, limits, times, number)))


def _requests(config: RunConfig, theirs: Limits, traffic: Traffic) -> tuple[str, str]:
    """What is asked for, and whether it is cut in another way."""
    generated = [_is_generator(spec) for spec in (config.workload, traffic.spec)]
    cut = f"{_limits(theirs)}, and here {_limits(traffic.limits)}" * (theirs != traffic.limits)
    if all(generated):
        same = parse_generators(config.workload) == parse_generators(traffic.spec)
        return f"{config.workload}, and here {traffic.spec}" * (not same), cut
    if any(generated):
        return f"{_kind(config.workload)}, and here {_kind(traffic.spec)}", cut
    whole = make_workload(config.workload, config.num_requests, config.seed, config.tokenizer)
    as_planned = clipped(whole, *traffic.limits)
    if not _same(as_planned.requests, traffic.requests):
        return "other requests or times", cut
    return "", cut * (clipped(whole, *theirs).requests != as_planned.requests)


def _same(ours: Sequence[TraceRequest], theirs: Sequence[TraceRequest]) -> bool:
    """As far as both go: how many there are is another question."""
    number = min(len(ours), len(theirs))
    return _from_0(ours[:number]) == _from_0(theirs[:number])


def _from_0(requests: Sequence[TraceRequest]) -> list[tuple[object, ...]]:
    start_ms = requests[0].arrival_ms if requests else 0.0
    return [
        (round(each.arrival_ms - start_ms, 3), each.input_length, each.output_length, each.block_tokens, each.hash_ids)
        for each in requests
    ]


def _times(ours: Arrivals, theirs: Arrivals) -> str:
    same = (
        ours.speedup == theirs.speedup
        if isinstance(ours, TraceTimes) and isinstance(theirs, TraceTimes)
        else _rates(ours) == _rates(theirs) is not None
    )
    return f"sent at {_said(ours)}, and here {_said(theirs)}" * (not same)


def _rates(arrivals: Arrivals) -> tuple[object, ...] | None:
    """What an open loop's times are drawn from. A level rate is the same for however long."""
    if not isinstance(arrivals, OpenLoop):
        return None
    pieces = arrivals.pieces
    is_level = len({rate for piece in pieces for rate in (piece.start, piece.end)}) == 1
    return _level(pieces[0].start) if is_level else pieces, arrivals.spacing, arrivals.burstiness


def _level(rate: float) -> tuple[Piece, ...]:
    return (Piece(None, rate, rate),)


def _said(arrivals: Arrivals) -> str:
    burstiness = f" {arrivals.burstiness:g}" if isinstance(arrivals, OpenLoop) and arrivals.spacing == "gamma" else ""
    return describe(arrivals) + burstiness


def _is_generator(spec: str) -> bool:
    return spec.partition(":")[0].partition("+")[0].rpartition("*")[2] in GENERATORS


def _kind(spec: str) -> str:
    """A generator in full; of a file its format: where it lies is nobody's concern."""
    return spec if _is_generator(spec) else f"a file ({spec.partition(':')[0]})"


def _limits(limits: Limits) -> str:
    said = [f"{tokens} {side}" for tokens, side in zip(limits, ("in", "out"), strict=True) if tokens]
    return f"cut to {' and '.join(said)}" if said else "not cut"
