"""What a scheduler counts, and its view of itself as numbers."""

from __future__ import annotations

from dataclasses import dataclass

from diptych.engine.block_pool import BlockPool, BlockState
from diptych.engine.queues import Queues
from diptych.messages import WorkerStats


@dataclass(slots=True)
class Totals:
    """Since the scheduler began; only rises."""

    prompt_computed: int = 0  # tokens, those computed again after a preemption included
    prompt_cached: int = 0  # tokens found in the prefix cache when a request was given its first blocks
    prompt_transferred: int = 0  # tokens whose KV was delivered
    generated: int = 0  # tokens drawn here
    preemptions: int = 0


def worker_stats(pool: BlockPool, queues: Queues, totals: Totals) -> WorkerStats:
    """Gauges and totals, as far as a scheduler knows them: no rates, no transfers."""
    return WorkerStats(
        num_running=len(queues.running) + len(queues.parked),
        num_waiting=len(queues.waiting) + len(queues.asking),
        waiting_prefill_tokens=queues.num_prefill_tokens,
        blocks_total=pool.num_blocks,
        blocks_free=pool.count(BlockState.FREE),
        blocks_cached=pool.count(BlockState.CACHED),
        blocks_used=pool.count(BlockState.USED),
        blocks_reserved=pool.count(BlockState.RESERVED),
        blocks_in_flight=pool.count(BlockState.IN_FLIGHT),
        blocks_quarantined=pool.count(BlockState.QUARANTINED),
        prompt_tokens_computed_total=totals.prompt_computed,
        prompt_tokens_cached_total=totals.prompt_cached,
        prompt_tokens_transferred_total=totals.prompt_transferred,
        generated_tokens_total=totals.generated,
        preemptions_total=totals.preemptions,
        evictions_total=pool.evictions,
    )
