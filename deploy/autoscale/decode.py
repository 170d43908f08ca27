"""Decode workers by KV headroom, and by inter-token latency against the TPOT limit.

Each sequence makes every step of its batch a little longer (a line through what workers report, see `router.step_fit`)
and holds blocks. The batch that a worker should run is the largest within both limits; so many tokens a second it then
makes. How many are wanted does not depend on the number of workers, which is why one sum answers for more workers and
for fewer: a pool that is too small has more sequences, because each stays longer (Little's law), and makes no more
tokens for it.

Knows nothing about hysteresis and bounds.
"""

from __future__ import annotations

import math
from dataclasses import replace

from deploy.autoscale.signals import DecodeLoad, Need

TRUSTED_GROWTH = 2.0  # times the largest batch that was measured; further out a line says nothing
ITL_SHARE = 0.9  # of the limit that a mean step may take: batches differ, and so do steps
WAIT_SHARE = 0.1  # of the TTFT limit, from which on waiting for a decode worker is more than the end of its step
MOST_GROWTH = 4.0  # of the sequences, that is believed before it is seen


def needed(load: DecodeLoad, serving: int, start_s: float, ttft_ms: float, tpot_ms: float, kv_target: float) -> Need:
    """
    Args:
        serving: workers.
        ttft_ms: a prompt that keeps its blocks for longer than this is held up by prefill, not by decode.
        start_s: that a worker takes until it serves; what waits should be gone after as long again.
        kv_target: share of a worker's blocks that requests may hold.
    """
    load = _without_held_up(load, ttft_ms)
    if not load.running and not load.waiting:
        return Need(0, "no sequences run")
    if load.blocks_per_worker <= 0:
        return Need(0, "sequences run, and no decode worker has said how many blocks it has", known=False)
    serving = max(1, serving)
    batch = batch_within(load, tpot_ms, kv_target)
    now_ms = load.step_ms or load.line_ms(load.running / serving)
    then_ms = load.line_ms(batch)
    longer = then_ms / now_ms if now_ms > 0 and then_ms > 0 else 1.0  # a sequence stays, in such a batch
    stays_s = longer * load.running / load.ending_per_s if load.ending_per_s > 0 else start_s
    behind = load.waiting * min(1.0, stays_s / start_s)
    count = math.ceil((load.running * longer + behind) / batch - 1e-9)
    kv_share = load.held_blocks / (load.blocks_per_worker * serving)
    reason = f"steps take {now_ms:.1f} of {tpot_ms:g} ms, requests hold {kv_share:.0%} of the blocks"
    if load.waiting:
        reason += f", {load.waiting:.0f} sequences wait"
    if hopeless := _is_hopeless(load, tpot_ms):
        reason = f"a step of one sequence takes longer than tpot_ms: more workers cannot help it; {reason}"
    waits_ms = 1e3 * load.waiting / max(load.arriving_per_s, 1e-9)
    urgent = waits_ms > WAIT_SHARE * ttft_ms or kv_share > kv_target or (now_ms > tpot_ms and not hopeless)
    return Need(max(1, count), reason, urgent=urgent)


def batch_within(load: DecodeLoad, tpot_ms: float, kv_target: float) -> float:
    """The largest batch of a worker that stays within all limits; at least one sequence."""
    places = load.places_per_worker or math.inf
    known = TRUSTED_GROWTH * max(1.0, load.largest_batch)
    return max(1.0, min(places, known, _by_blocks(load, kv_target), _by_latency(load, tpot_ms)))


def _without_held_up(load: DecodeLoad, ttft_ms: float) -> DecodeLoad:
    """The load as it would be if prefill kept up (Little's law). More decode workers do not bring those prompts any
    sooner that wait at prefill workers with their blocks held here, nor room to those who wait behind them; but once
    prefill has grown, as many sequences end there as begin."""
    usual = load.arriving_per_s * ttft_ms / 1e3
    if load.loading <= usual or not load.ending_per_s:
        return load
    decoding = (load.running - load.loading) * max(1.0, min(MOST_GROWTH, load.arriving_per_s / load.ending_per_s))
    return replace(
        load,
        running=decoding + usual,
        loading=usual,
        waiting=load.waiting * usual / load.loading,
        ending_per_s=max(load.ending_per_s, load.arriving_per_s),
        held_blocks=load.held_blocks * (decoding + usual) / load.running,
    )


def _by_blocks(load: DecodeLoad, kv_target: float) -> float:
    per_sequence = load.held_blocks / load.running if load.running else 0.0
    return kv_target * load.blocks_per_worker / per_sequence if per_sequence else math.inf


def _by_latency(load: DecodeLoad, tpot_ms: float) -> float:
    """Unbounded by a limit that not even a single sequence meets: then workers are of no help. That takes a measured
    line; until there is one, half as long a step is expected of half as many sequences."""
    slope, base_ms, may_take_ms = load.step_ms_per_sequence, load.step_base_ms, ITL_SHARE * tpot_ms
    if slope <= 0 or _is_hopeless(load, tpot_ms):
        return math.inf
    if base_ms < may_take_ms:
        return (may_take_ms - base_ms) / slope
    return (load.step_ms - base_ms) / slope * may_take_ms / load.step_ms if load.step_ms else 1.0


def _is_hopeless(load: DecodeLoad, tpot_ms: float) -> bool:
    return load.line_measured and load.step_base_ms >= tpot_ms
