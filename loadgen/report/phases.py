"""What each phase of a disaggregated request cost, and how evenly the workers were loaded, by the server's own report.

Needs a server that says so (Diptych: `return_report`); of others there is nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from loadgen.client.records import Cost, Record


class PhaseCost(msgspec.Struct, frozen=True, kw_only=True):
    """Milliseconds a request."""

    mean: float
    p50: float
    p99: float


class Phases(msgspec.Struct, frozen=True, kw_only=True):
    """Over measured requests that succeeded. Transfers: over those whose prompt another worker computed."""

    remote_share: float  # of the requests
    queue: PhaseCost  # until the prompt was taken up
    prefill: PhaseCost  # until it was computed
    transfer: PhaseCost | None  # first write to delivery
    exposed: PhaseCost | None  # prefill's end to delivery: what the transfer adds to the second token
    decode: PhaseCost  # first token to last, as the client saw it
    transfer_bytes: int
    prompt_tokens: dict[str, int]  # computed, by the worker that did; those that did none are not in it
    output_tokens: dict[str, int]  # by decode worker
    num_prompt_workers: int | None = None  # that there were; None: not known, and then neither is their balance
    num_output_workers: int | None = None


def phases(good: Sequence[Record]) -> Phases | None:
    told = [(each, each.cost) for each in good if each.cost is not None]
    if not told:
        return None
    costs = [cost for _, cost in told]
    remote = [cost for cost in costs if cost.prefill_worker]
    computed: Counter[str] = Counter()
    output: Counter[str] = Counter()
    for record, cost in told:
        computed[cost.prefill_worker or cost.decode_worker] += cost.computed_tokens
        output[cost.decode_worker] += record.output_tokens
    return Phases(
        remote_share=len(remote) / len(told),
        queue=_cost([cost.queue_ms for cost in costs]),
        prefill=_cost([cost.prefill_ms for cost in costs]),
        transfer=_of(remote, "transfer_ms"),
        exposed=_of(remote, "exposed_ms"),
        decode=_cost([(record.e2e_ms or 0.0) - (record.ttft_ms or 0.0) for record, _ in told]),
        transfer_bytes=sum(cost.transfer_bytes for cost in remote),
        prompt_tokens=dict(computed),
        output_tokens=dict(output),
    )


def jain(values: Sequence[float]) -> float:
    """Jain's fairness index: 1 if all are equal, 1/n if one has everything (Jain, Chiu, Hawe 1984)."""
    squares = len(values) * sum(value * value for value in values)
    return sum(values) ** 2 / squares if squares else 1.0


def balance(tokens: Mapping[str, int], num_workers: int | None) -> float | None:
    """Jain's index over all workers, those that got nothing included; None where their number is not known."""
    return None if num_workers is None else jain([*tokens.values(), *[0] * (num_workers - len(tokens))])


def _of(costs: Sequence[Cost], name: str) -> PhaseCost | None:
    return _cost([getattr(cost, name) for cost in costs]) if costs else None


def _cost(values: Sequence[float]) -> PhaseCost:
    p50, p99 = np.percentile(values, (50, 99)).tolist()
    return PhaseCost(mean=float(np.mean(values)), p50=p50, p99=p99)
