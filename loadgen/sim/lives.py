"""What became of the requests of a measured run, side by side: who computed what, and who decoded, at any moment.

From a client's records and what the server says each request cost. Knows nothing of timing models.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from loadgen.client.records import Cost, Record


@dataclass(frozen=True, slots=True)
class Life:
    """One request; ms from the start of the run, all by the client's clock."""

    record: Record
    cost: Cost
    came: float
    began: float  # its prompt
    first: float  # token
    ended: float

    @property
    def remote(self) -> bool:
        return bool(self.cost.prefill_worker)

    @property
    def num_prompt_tokens(self) -> int:
        return self.record.prompt_tokens or self.record.planned_input

    @property
    def squares(self) -> int:
        cached = max(0, self.num_prompt_tokens - self.cost.computed_tokens)
        return (cached + self.cost.computed_tokens) ** 2 - cached**2

    @property
    def prompt_worker(self) -> str:
        return self.cost.prefill_worker or self.cost.decode_worker


class Spans:
    """Stretches of time, asked how many of them touch another one."""

    def __init__(self, spans: Sequence[tuple[float, float]]) -> None:
        self._begins = np.sort(np.array([begin for begin, _ in spans]))
        self._ends = np.sort(np.array([end for _, end in spans]))

    def touching(self, begin: float, end: float) -> int:
        """Those that end after `begin` and begin before `end`."""
        return int(np.searchsorted(self._begins, end, "left") - np.searchsorted(self._ends, begin, "right"))


def lives_of(records: Sequence[Record]) -> list[Life]:
    """
    Raises:
        ValueError: no request says what it cost.
    """
    found = [
        Life(
            each,
            each.cost,
            each.intended_ms + each.lag_ms,
            each.intended_ms + each.ttft_ms - each.cost.prefill_ms,
            each.intended_ms + each.ttft_ms,
            each.intended_ms + each.e2e_ms,
        )
        for each in records
        if each.ok and each.cost is not None and each.ttft_ms is not None and each.e2e_ms is not None
    ]
    if not found:
        raise ValueError(
            """no request of the run says what it cost: run it with --extra-body '{"return_report": true}' against a """
            "Diptych cluster"
        )
    return found


def prompts_by_worker(lives: Sequence[Life]) -> defaultdict[str, Spans]:
    """When prompts were computed, by worker."""
    spans = defaultdict[str, list[tuple[float, float]]](list)
    for each in lives:
        spans[each.prompt_worker].append((each.began, each.first))
    return defaultdict(lambda: Spans([]), {worker: Spans(there) for worker, there in spans.items()})


def decoding_by_worker(lives: Sequence[Life]) -> dict[str, Spans]:
    """When there was something to decode, by worker."""
    by_worker = by_decode_worker(lives)
    found = {each.prompt_worker: Spans([]) for each in lives}
    return found | {name: Spans([(each.first, each.ended) for each in there]) for name, there in by_worker.items()}


def by_decode_worker(lives: Sequence[Life]) -> defaultdict[str, list[Life]]:
    found = defaultdict[str, list[Life]](list)
    for each in lives:
        found[each.cost.decode_worker].append(each)
    return found


def tokens_of_gaps(record: Record) -> list[float]:
    """That came after each gap. Where the server does not say, as many as an event of this answer has on average: text
    is held back until its characters are whole, so there are fewer events than tokens.
    """
    known = [float(max(1, each)) for each in record.event_tokens[1:]]
    if len(known) == len(record.itl_ms) and sum(record.event_tokens) == record.output_tokens:
        return known
    num_gaps = len(record.itl_ms)
    return [max(1.0, (record.output_tokens - 1) / max(1, num_gaps))] * num_gaps
