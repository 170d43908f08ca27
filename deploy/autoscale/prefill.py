"""Prefill workers by predicted queueing delay against the TTFT limit.

A first token waits for the prompts before it, then for its own. What is left of the limit after a mean prompt's own
computing is what it may wait. Two questions, of which the larger answer counts:

- In the long run: with prompts coming at random and n workers, which share waits longer than that? Erlang's delay
  formula (A. K. Erlang 1917; the M/M/n queue): P(wait > t) = C(n, a) exp(-(n - a) t / s), where s is the time a prompt
  computes and a = arrivals x s the offered load.
- Now: what waits when workers asked for now begin to serve, given those that start already? It should be gone after as
  long again as they took to start.

Knows nothing about hysteresis and bounds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import count as counting
from itertools import islice

from deploy.autoscale.signals import Need, PrefillLoad

MOST = 10_000  # workers; a search has to end
LEAST_SHARE = 0.1  # of the limit that a prompt may wait, however long it computes itself


def needed(
    load: PrefillLoad, serving: int, starting_s: Sequence[float], start_s: float, ttft_ms: float, attainment: float
) -> Need:
    """
    Args:
        serving: workers.
        starting_s: for how long others have been starting.
        start_s: that a worker takes until it serves.
        attainment: share of the prompts that are to wait no longer than the limit leaves.
    """
    if not load.arriving_tokens_per_s and not load.queued_tokens:
        return Need(0, "no prompts come")
    if load.tokens_per_s <= 0:
        return Need(0, "prompts come, and no prefill worker has measured its speed yet", known=False)
    own_ms = _own_ms(load)
    may_wait_ms = max(ttft_ms - own_ms, LEAST_SHARE * ttft_ms)
    steady = for_arrivals(load, may_wait_ms / 1e3, attainment)
    backlog = backlog_when_started(load, serving, starting_s, start_s)
    recover_s = max(start_s, may_wait_ms / 1e3)
    behind = math.ceil((load.arriving_tokens_per_s + backlog / recover_s) / load.tokens_per_s)
    delay_ms = 1e3 * load.queued_tokens / (load.tokens_per_s * max(1, serving))
    late = backlog > load.tokens_per_s * serving * may_wait_ms / 1e3
    count = max(steady, behind) if late else steady
    reason = f"prompts would wait {_ms(delay_ms)}, may wait {_ms(may_wait_ms)}; {_rate(load)}"
    if own_ms > ttft_ms:
        reason = f"a mean prompt computes {_ms(own_ms)}, longer than ttft_ms: more workers cannot help it; {reason}"
    return Need(max(1, count), reason, urgent=delay_ms > may_wait_ms)


def for_arrivals(load: PrefillLoad, may_wait_s: float, attainment: float) -> int:
    """The fewest workers with which no more than 1 - attainment of the prompts wait longer."""
    service_s = _own_ms(load) / 1e3
    offered = load.arriving_tokens_per_s / load.tokens_per_s
    for count, blocked in enumerate(_blocked_shares(offered), start=1):
        if count >= MOST or _late_share(count, offered, blocked, service_s, may_wait_s) <= 1 - attainment:
            return count
    raise AssertionError("the shares never end")


def late_share(num_workers: int, offered: float, service_s: float, wait_s: float) -> float:
    """Share of the arrivals that wait longer than `wait_s` in an M/M/n queue; 1 where it is overloaded.

    Args:
        offered: load in Erlangs, arrivals a second x `service_s`.
    """
    blocked = next(islice(_blocked_shares(offered), num_workers - 1, None))
    return _late_share(num_workers, offered, blocked, service_s, wait_s)


def _blocked_shares(offered: float) -> Iterator[float]:
    """Erlang B of 1, 2, 3 … servers, by its recursion."""
    blocked = 1.0
    for count in counting(1):
        blocked = offered * blocked / (count + offered * blocked)
        yield blocked


def _late_share(num_workers: int, offered: float, blocked: float, service_s: float, wait_s: float) -> float:
    if offered >= num_workers:
        return 1.0
    delayed = num_workers * blocked / (num_workers - offered * (1 - blocked))
    return delayed * math.exp(-(num_workers - offered) * wait_s / service_s) if service_s > 0 else 0.0


def backlog_when_started(load: PrefillLoad, serving: int, starting_s: Sequence[float], start_s: float) -> float:
    """Tokens that wait `start_s` from now, if nothing is done: what starts already joins on the way."""
    backlog, num_workers, now_s = load.queued_tokens, serving, 0.0
    joins_s = sorted(min(max(start_s - age_s, 0.0), start_s) for age_s in starting_s)
    for until_s in (*joins_s, start_s):
        growth = load.arriving_tokens_per_s - num_workers * load.tokens_per_s
        backlog = max(0.0, backlog + growth * (until_s - now_s))
        num_workers, now_s = num_workers + 1, until_s
    return backlog


def _own_ms(load: PrefillLoad) -> float:
    """What a mean prompt computes alone; without a count of prompts, nothing."""
    return 1e3 * load.prompt_tokens / load.tokens_per_s


def _rate(load: PrefillLoad) -> str:
    return f"{load.arriving_tokens_per_s:.0f} of {load.tokens_per_s:.0f} tokens/s a worker come in"


def _ms(value: float) -> str:
    return f"{value:.0f} ms"
