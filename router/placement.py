"""Where a request goes: a pure function from (request, fleet view) to (prefill, decode, expected ms and why).

Who computes the prompt is compared in one unit, estimated milliseconds to the first token, from rates the workers
measure about themselves; who decodes it, by room, then batch size, then transfer time. A worker that has measured
nothing yet is taken at the mean rate of the prefill workers, so that a fresh one is neither flooded nor starved. Knows
no clock, socket, Redis or randomness: ties are broken by `turn`, a number the caller counts up.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from diptych.errors import NoCapacity
from diptych.messages import Role

# While nobody has measured anything. A small model on a CPU; wrong elsewhere, and replaced by the first measurement.
UNMEASURED_PREFILL_TOKENS_PER_S = 300.0
UNMEASURED_TRANSFER_BYTES_PER_S = 1e9
RETRY_AFTER_S = 1.0


@dataclass(frozen=True, slots=True)
class WorkerView:
    """One placeable worker: what it reported, plus what this router has booked on it since."""

    worker_id: str
    role: Role
    matched_tokens: int  # of this prompt, by the prefix index
    queued_prefill_tokens: int  # reported or booked, whichever is more: the report lags and the booking is in it
    num_running: int  # sequences, likewise
    available_blocks: int  # free and cached ones as reported, or those not booked, whichever is fewer
    prefill_tokens_per_s: float = 0.0  # 0: not measured yet
    transfer_bytes_per_s: float = 0.0


@dataclass(frozen=True, slots=True)
class PromptView:
    """What placement needs to know of a request."""

    num_tokens: int
    num_blocks: int  # of the prompt
    block_bytes: int
    force_remote: bool = False  # a canary proves the whole path


Pair = tuple[str, str]  # (prefill id, "" where decode computes the prompt itself; decode id)


@dataclass(frozen=True, slots=True)
class Avoid:
    """Where a request is not placed: it failed there before, or the link between the two is suspect."""

    workers: frozenset[str] = frozenset()
    pairs: frozenset[Pair] = frozenset()

    def __or__(self, other: Avoid) -> Avoid:
        return Avoid(self.workers | other.workers, self.pairs | other.pairs)


NOTHING = Avoid()


@dataclass(frozen=True, slots=True)
class Placement:
    prefill_id: str  # empty: decode computes the prompt itself
    decode_id: str
    expected_ms: float  # time to first token
    predicted_cached: int  # prompt tokens believed cached where the prompt is computed
    reason: str


def place(
    prompt: PromptView, workers: Iterable[WorkerView], remote_prefill: str, turn: int, avoid: Avoid = NOTHING
) -> Placement:
    """Choose the pair for one prompt.

    Args:
        remote_prefill: "auto", "always" or "never" (`RouterConfig.remote_prefill`).
        turn: rises with every call; rotates equal candidates.

    Raises:
        NoCapacity: no worker can take it now.
    """
    views = [view for view in workers if view.worker_id not in avoid.workers]
    prefills = _rotate([view for view in views if view.role is Role.PREFILL], turn)
    decodes = _rotate([view for view in views if view.role is Role.DECODE], turn)
    if not decodes:
        raise NoCapacity(
            "no decode worker is ready; start one, or retry when one has joined", retry_after_s=RETRY_AFTER_S
        )
    rates = _Rates(views)
    pairs = [(p, d) for p in prefills for d in decodes if (p.worker_id, d.worker_id) not in avoid.pairs]
    pair = min(pairs, key=lambda pair: _pair_cost(prompt, pair[0], pair[1], rates), default=None)
    able = [view for view in decodes if ("", view.worker_id) not in avoid.pairs]
    local = min(able, key=lambda view: (not _fits(prompt, view), _prefill_ms(prompt, view, rates)), default=None)
    if pair is None and (local is None or remote_prefill == "always"):
        raise NoCapacity(_why_nowhere(prefills), retry_after_s=RETRY_AFTER_S)
    why_local = "" if local is None else _why_local(prompt, pair, local, rates, remote_prefill)
    if pair is None or why_local:
        assert local is not None
        why_local = "transfer_suspect" if pair is None and prefills else why_local
        return Placement("", local.worker_id, _prefill_ms(prompt, local, rates), local.matched_tokens, why_local)
    prefill, decode = pair
    return Placement(
        prefill.worker_id, decode.worker_id, _prefill_ms(prompt, prefill, rates), prefill.matched_tokens, "remote"
    )


def _why_nowhere(prefills: Sequence[WorkerView]) -> str:
    if prefills:
        return "every pair of workers has failed this request or is suspect; retry later"
    return "no prefill worker is ready and remote_prefill is 'always'; start one, or use 'auto'"


def _why_local(
    prompt: PromptView,
    pair: tuple[WorkerView, WorkerView] | None,
    decode: WorkerView,
    rates: _Rates,
    remote_prefill: str,
) -> str:
    """The reason to compute the prompt on the decode worker, or "" to use the pair."""
    if pair is None:
        return "no_prefill_worker"
    prefill, _ = pair
    if remote_prefill == "never":
        return "configured"
    if prompt.force_remote or remote_prefill == "always" or not _fits(prompt, decode):
        return ""
    shorter = decode.matched_tokens > prefill.matched_tokens
    if shorter and _prefill_ms(prompt, decode, rates) < _prefill_ms(prompt, prefill, rates):
        return "cached_on_decode"
    return ""


class _Rates:
    """Measured rates, with the peers' mean for whoever has none."""

    def __init__(self, views: Sequence[WorkerView]) -> None:
        self._prefill = _mean(
            (view.prefill_tokens_per_s for view in views if view.role is Role.PREFILL), UNMEASURED_PREFILL_TOKENS_PER_S
        )
        self.transfer = _mean((view.transfer_bytes_per_s for view in views), UNMEASURED_TRANSFER_BYTES_PER_S)

    def prefill(self, view: WorkerView) -> float:
        return view.prefill_tokens_per_s or self._prefill


def _prefill_ms(prompt: PromptView, view: WorkerView, rates: _Rates) -> float:
    """Queue plus computation of what this worker has not cached. At least one token is always computed."""
    uncached = max(1, prompt.num_tokens - view.matched_tokens)
    return 1e3 * (view.queued_prefill_tokens + uncached) / rates.prefill(view)


def _pair_cost(prompt: PromptView, prefill: WorkerView, decode: WorkerView, rates: _Rates) -> tuple[float, ...]:
    return (_prefill_ms(prompt, prefill, rates), *_decode_cost(prompt, decode, rates))


def _decode_cost(prompt: PromptView, view: WorkerView, rates: _Rates) -> tuple[bool, int, float]:
    """Workers with room first, then the emptier batch (it sets the inter-token latency), then the shorter transfer."""
    matched_share = view.matched_tokens / prompt.num_tokens
    transfer_ms = 1e3 * prompt.num_blocks * prompt.block_bytes * (1 - matched_share) / rates.transfer
    return (not _fits(prompt, view), view.num_running, transfer_ms)


def _fits(prompt: PromptView, view: WorkerView) -> bool:
    return view.available_blocks >= prompt.num_blocks


def _mean(values: Iterable[float], default: float) -> float:
    measured = [value for value in values if value > 0]
    return sum(measured) / len(measured) if measured else default


def _rotate(views: list[WorkerView], turn: int) -> list[WorkerView]:
    """`min` keeps the first of equals, so rotating the list spreads ties."""
    start = turn % len(views) if views else 0
    return views[start:] + views[:start]
