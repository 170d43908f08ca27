"""A workload: requests in the order in which they are to be sent, with their recorded times if they have any."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from loadgen.traces.mooncake import TraceRequest


@dataclass(frozen=True, slots=True)
class Workload:
    """`labels` has one for each request: its class of traffic, reported separately."""

    requests: Sequence[TraceRequest]
    labels: Sequence[str]
    timed: bool  # the requests have times of their own

    def __post_init__(self) -> None:
        if len(self.labels) != len(self.requests):
            raise ValueError(f"{len(self.labels)} labels for {len(self.requests)} requests")


def clipped(workload: Workload, max_input: int | None, max_output: int | None) -> Workload:
    """The same requests, none longer than the limits. What is cut is the end of a prompt, so prefixes stay shared."""
    requests = [
        _clip(each, max_input or each.input_length, max_output or each.output_length) for each in workload.requests
    ]
    return replace(workload, requests=requests)


def _clip(request: TraceRequest, max_input: int, max_output: int) -> TraceRequest:
    length = min(request.input_length, max_input)
    ids = request.hash_ids[: -(-length // request.block_tokens)]
    output = min(request.output_length, max_output)
    return replace(request, input_length=length, output_length=output, hash_ids=ids)


def infinite_cache_hits(requests: Sequence[TraceRequest]) -> list[int]:
    """Of each request, the prompt tokens in whole blocks that an earlier one began with: what one cache without an
    end could save. Ids are taken with all that stands before them."""
    numbers: dict[tuple[int, int], int] = {}
    hits = []
    for request in requests:
        chain, num_hit, going = -1, 0, True
        for hash_id in request.full_ids:
            known = numbers.get((chain, hash_id))
            going = going and known is not None
            num_hit += request.block_tokens * going
            chain = numbers.setdefault((chain, hash_id), len(numbers))
        hits.append(num_hit)
    return hits
