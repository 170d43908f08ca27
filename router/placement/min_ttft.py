"""The default policy: the least estimated time, in milliseconds, from measured rates.

Cold prompts go where the least is waiting, known prefixes where they are held, until the queue there costs more than
computing them again elsewhere; then the other worker holds them too. So hot prefixes replicate by themselves, which
following the longest match alone never does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import inf

import numpy as np
import numpy.typing as npt

from diptych.messages import Role
from router.placement.bulk import columns, decodes_ms, first_tokens_ms
from router.placement.policy import MAX_CONSIDERED, Pick
from router.placement.scene import Local, Scene
from router.placement.views import REMOTE, WorkerView
from router.placement.workers import Floats, Workers

MAX_PAIRS = 256  # looked at before the search ends with the best so far; two or three are usual


@dataclass(frozen=True, slots=True)
class MinTtft:
    def filter(self, scene: Scene, workers: Sequence[WorkerView]) -> Sequence[WorkerView]:
        """Decode workers with room for prompt and completion; if there are none, for the prompt; else all."""
        if workers[0].role is Role.PREFILL:
            return workers
        every, needed = columns(scene, workers), scene.prompt.num_blocks
        for num_blocks in (needed + scene.prompt.growth_blocks, needed):
            if len(roomy := every.where(every.available_blocks >= num_blocks)):
                return roomy
        return every

    prefill_cost = staticmethod(Scene.first_token_ms)
    decode_cost = staticmethod(Scene.decode_ms)

    def pick(self, scene: Scene, prefills: Sequence[WorkerView], decodes: Sequence[WorkerView]) -> Pick | None:
        if not prefills:
            return None
        by_prefill, by_decode = _by_prefill(scene, prefills), _by_decode(scene, decodes)
        found = _cheapest_pair(scene, by_prefill, by_decode)
        if found is None or scene.local is not Local.IF_SOONER:
            return found and found[1]
        pair_ms, pick = found
        alone_ms, alone = _cheapest_alone(scene, by_decode, pair_ms)
        reason = _why_alone(scene, alone_ms, alone, pair_ms, pick) if alone else ""
        return Pick(None, alone, reason, pick.prefills, pick.decodes) if alone and reason else pick


@dataclass(frozen=True, slots=True)
class Costed:
    """Workers of one role with what they cost, the cheapest first."""

    ms: list[float]
    order: list[int]  # positions in `workers`
    workers: Workers

    def __iter__(self) -> Iterator[tuple[float, WorkerView]]:
        return zip(self.ms, map(self.workers.__getitem__, self.order), strict=True)

    @property
    def best(self) -> list[WorkerView]:
        return [self.workers[at] for at in self.order[:MAX_CONSIDERED]]


def _by_prefill(scene: Scene, prefills: Sequence[WorkerView]) -> Costed:
    """Equals by what they hold."""
    workers = columns(scene, prefills).rotated(scene.dice)
    ms = first_tokens_ms(scene, workers)
    return _sorted(workers, ms, np.lexsort((-workers.matched_tokens, ms)))


def _by_decode(scene: Scene, decodes: Sequence[WorkerView]) -> Costed:
    """Equals by batch size (where nobody has measured it is all there is), then by what they hold."""
    workers = columns(scene, decodes).rotated(scene.dice)
    ms = decodes_ms(scene, workers)
    return _sorted(workers, ms, np.lexsort((-workers.matched_tokens, workers.num_running, ms)))


def _sorted(workers: Workers, ms: Floats, order: npt.NDArray[np.int64]) -> Costed:
    return Costed(ms.take(order).tolist(), order.tolist(), workers)


def _cheapest_pair(scene: Scene, by_prefill: Costed, by_decode: Costed) -> tuple[float, Pick] | None:
    """Branch and bound: both roles in order of cost, until what is left cannot be cheaper, whatever its link.

    Exact up to `MAX_PAIRS`. O(workers log workers) where links are alike, because then one of the first pairs is best.
    """
    least_decode_ms, longest = by_decode.ms[0], int(by_decode.workers.matched_tokens.max())
    best_ms, best, looked = inf, None, 0
    for prefill_ms, prefill in by_prefill:
        if prefill_ms + least_decode_ms >= best_ms or looked >= MAX_PAIRS:
            break
        least_ms = prefill_ms + scene.least_exposed_ms(prefill, longest)
        for decode_ms, decode in by_decode:
            if least_ms + decode_ms >= best_ms:
                break
            if scene.allows(prefill, decode):
                looked += 1
                ms = prefill_ms + scene.exposed_ms(prefill, decode) + decode_ms
                if ms < best_ms:
                    best_ms, best = ms, (prefill, decode)
    if best is None:
        return None
    return best_ms, Pick(*best, REMOTE, by_prefill.best, by_decode.best)


def _cheapest_alone(scene: Scene, by_decode: Costed, below_ms: float) -> tuple[float, WorkerView | None]:
    """Where decode computes the prompt itself at the least cost, its streams' included; None if not below the limit."""
    best_ms, best = below_ms, None
    for decode_ms, decode in by_decode:
        if decode_ms >= best_ms:
            break
        ms = scene.first_token_ms(decode) + decode_ms
        if ms < best_ms and scene.allows(None, decode) and scene.has_room(decode):
            ms += scene.disturbance_ms(decode)
            if ms < best_ms:
                best_ms, best = ms, decode
    return best_ms, best


def _why_alone(scene: Scene, alone_ms: float, alone: WorkerView, pair_ms: float, pick: Pick) -> str:
    """Why decode should compute the prompt itself, or "" if the pair should.

    It has to be sooner by more than estimates have been wrong lately. And where it has never measured how quickly it
    computes prompts, the transfer that would be saved does not count: one guess does not outweigh one measurement.
    """
    prefill = pick.prefill
    assert prefill is not None
    exposed_ms = scene.exposed_ms(prefill, pick.decode)
    if not alone.prefill_ms_per_token:
        pair_ms -= exposed_ms
    limit_ms = pair_ms - scene.learnt.error * scene.first_token_ms(prefill)
    if alone_ms >= limit_ms:
        return ""
    if scene.matched(alone) > scene.matched(prefill):
        return "cached_on_decode"
    return "prefill_busy" if alone_ms >= limit_ms - scene.queue_ms(prefill) else "transfer_outweighs"
