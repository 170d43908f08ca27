"""What a scheduler counts, and its view of itself as numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from diptych.engine.block_pool import BlockPool, BlockState
from diptych.engine.limits import Limits
from diptych.engine.queues import Queues
from diptych.engine.sequence import Group, Stage
from diptych.messages import WorkerStats


@dataclass(slots=True)
class Totals:
    """Since the scheduler began; only rises."""

    prompt_queried: int = 0  # tokens looked up in the prefix cache when a request was given its first blocks
    prompt_computed: int = 0  # tokens, those computed again after a preemption included
    prompt_cached: int = 0  # tokens found in the prefix cache when a request was given its first blocks
    prompt_transferred: int = 0  # tokens whose KV was delivered
    generated: int = 0  # tokens drawn here
    drafted: int = 0  # guesses that were computed
    accepted: int = 0  # of those, right
    preemptions: int = 0
    expired: int = 0  # requests ended at their deadline
    steps: int = 0  # that computed something
    step_tokens: int = 0  # of the latest of them


def worker_stats(
    pool: BlockPool, queues: Queues, groups: Iterable[Group], totals: Totals, limits: Limits
) -> WorkerStats:
    """Gauges and totals, as far as a scheduler knows them: no rates, no transfers."""
    stages = Counter(group.stage for group in groups)
    return WorkerStats(
        num_running=len(queues.running) + len(queues.parked),
        num_waiting=len(queues.waiting) + len(queues.asking),
        running_by_kind=queues.running_by_kind(),
        waiting_by_kind=queues.waiting_by_kind(),
        num_loading=stages[Stage.RESERVED] + stages[Stage.IN_FLIGHT],
        num_held=stages[Stage.HELD],
        step_tokens=totals.step_tokens,
        step_budget=limits.max_batch_tokens,
        max_running=limits.max_running,
        waiting_prefill_tokens=queues.num_prefill_tokens,
        blocks_total=pool.num_blocks,
        blocks_free=pool.count(BlockState.FREE),
        blocks_cached=pool.count(BlockState.CACHED),
        blocks_used=pool.count(BlockState.USED),
        blocks_reserved=pool.count(BlockState.RESERVED),
        blocks_in_flight=pool.count(BlockState.IN_FLIGHT),
        blocks_quarantined=pool.count(BlockState.QUARANTINED),
        prompt_tokens_queried_total=totals.prompt_queried,
        prompt_tokens_computed_total=totals.prompt_computed,
        prompt_tokens_cached_total=totals.prompt_cached,
        prompt_tokens_transferred_total=totals.prompt_transferred,
        generated_tokens_total=totals.generated,
        drafted_tokens_total=totals.drafted,
        accepted_tokens_total=totals.accepted,
        preemptions_total=totals.preemptions,
        expired_total=totals.expired,
        steps_total=totals.steps,
        evictions_total=pool.evictions,
    )
