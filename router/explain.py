"""Why a request went where it went: the latest placements, what each choice would have cost, and what came true.

A placement leaves a reference to what it weighed (`placement.scene.Considered`: at most eight workers of each role);
the costs are worked out when somebody asks. Bounded by the number of requests it remembers. Holds no token and no text.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from diptych.errors import DiptychError
from router.metrics import OK
from router.placement import Placement
from router.placement.weigh import Candidate, weigh
from router.requests import Report, TokenRequest

MAX_CANDIDATES = 16  # shown of a decision, the cheapest first


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt's placement."""

    at: float  # unix seconds
    attempt: int  # from 0
    policy: str
    remote_prefill: str
    reason: str
    matched_tokens: int  # the longest prefix any worker was believed to hold
    expected_completion_tokens: float
    expected_error: float  # of predicted times to first token, as a share
    took_us: float
    chosen: Candidate
    best_alternative: Candidate | None  # by cost in ms, whatever the policy looks at
    alternative_costs_more_ms: float | None  # below zero: it was estimated to be better
    candidates: list[Candidate]


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What was believed of the last attempt, and what was true; None where it never came to be known."""

    outcome: str
    retries: int
    predicted_cached_tokens: int
    cached_tokens: int | None
    expected_ttft_ms: float
    ttft_ms: float | None  # from placement
    expected_exposed_transfer_ms: float
    exposed_transfer_ms: float | None
    queue_ms: float | None
    prefill_ms: float | None
    completion_tokens: int


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    request_id: str
    client_id: str  # X-Request-Id
    prompt_tokens: int
    decisions: list[Decision]
    outcome: Outcome | None  # None: it runs


@dataclass(slots=True)
class _Made:
    at: float
    attempt: int
    placement: Placement
    took_s: float


@dataclass(slots=True)
class _Entry:
    request: tuple[str, str, int]  # id, client's id, prompt tokens
    made: list[_Made] = field(default_factory=list)
    outcome: Outcome | None = None


class ExplainRing:
    """Remembers the latest `size` requests; 0: none."""

    def __init__(self, size: int, policy: str, remote_prefill: str, clock: Callable[[], float] = time.time) -> None:
        self.size = size
        self._policy = policy
        self._remote_prefill = remote_prefill
        self._clock = clock
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._by_client_id: dict[str, str] = {}  # the latest request of each

    def __len__(self) -> int:
        return len(self._entries)

    def placed(self, request: TokenRequest, placement: Placement, attempt: int, took_s: float) -> None:
        if not self.size:
            return
        entry = self._entries.get(request.request_id)
        if entry is None:
            entry = _Entry((request.request_id, request.client_id, len(request.prompt)))
            self._entries[request.request_id] = entry
            if request.client_id:
                self._by_client_id[request.client_id] = request.request_id
            self._forget_oldest()
        entry.made.append(_Made(self._clock(), attempt, placement, took_s))

    def ended(self, request: TokenRequest, report: Report, error: DiptychError | None) -> None:
        if (entry := self._entries.get(request.request_id)) is not None:
            entry.outcome = _outcome(report, entry.made[-1].placement, error)

    def latest(self, count: int) -> list[str]:
        """Ids of the latest requests, the newest first."""
        return [request_id for request_id, _ in zip(reversed(self._entries), range(count), strict=False)]

    def explain(self, request_id: str) -> Explanation | None:
        """By the answer's id or the client's `X-Request-Id`; None if it is not remembered."""
        entry = self._entries.get(request_id) or self._entries.get(self._by_client_id.get(request_id, ""))
        if entry is None:
            return None
        found, client_id, num_tokens = entry.request
        return Explanation(
            request_id=found,
            client_id=client_id,
            prompt_tokens=num_tokens,
            decisions=[self._decision(made) for made in entry.made],
            outcome=entry.outcome,
        )

    def _forget_oldest(self) -> None:
        while len(self._entries) > self.size:
            request_id, entry = self._entries.popitem(last=False)
            if self._by_client_id.get(entry.request[1]) == request_id:
                del self._by_client_id[entry.request[1]]

    def _decision(self, made: _Made) -> Decision:
        placement, considered = made.placement, made.placement.considered
        assert considered is not None, "placements that are served know what they considered"
        candidates = sorted(weigh(considered), key=lambda candidate: candidate.cost_ms)
        chosen = next(each for each in candidates if _is(each, placement))
        other = next((each for each in candidates if each is not chosen), None)
        return Decision(
            at=made.at,
            attempt=made.attempt,
            policy=self._policy,
            remote_prefill=self._remote_prefill,
            reason=placement.reason,
            matched_tokens=placement.matched_tokens,
            expected_completion_tokens=considered.scene.learnt.expected_tokens,
            expected_error=considered.scene.learnt.error,
            took_us=made.took_s * 1e6,
            chosen=chosen,
            best_alternative=other,
            alternative_costs_more_ms=other.cost_ms - chosen.cost_ms if other else None,
            candidates=candidates[:MAX_CANDIDATES],
        )


def _is(candidate: Candidate, placement: Placement) -> bool:
    return (candidate.prefill or "", candidate.decode) == (placement.prefill_id, placement.decode_id)


def _outcome(report: Report, placement: Placement, error: DiptychError | None) -> Outcome:
    prefill, decode = report.prefill, report.decode
    return Outcome(
        outcome=error.code if error else OK,
        retries=report.num_retries,
        predicted_cached_tokens=report.predicted_cached,
        cached_tokens=prefill.prompt_cached if prefill else None,
        expected_ttft_ms=report.expected_ms,
        ttft_ms=report.ttft_ms,
        expected_exposed_transfer_ms=placement.exposed_ms,
        exposed_transfer_ms=decode.exposed_ms if decode else None,
        queue_ms=prefill.queue_ms if prefill else None,
        prefill_ms=prefill.compute_ms if prefill else None,
        completion_tokens=report.num_tokens,
    )
