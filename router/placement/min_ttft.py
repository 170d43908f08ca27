"""The default policy: the least estimated time, in milliseconds, from measured rates.

Cold prompts go where the least is waiting, known prefixes where they are held, until the queue there costs more than
computing them again elsewhere; then the other worker holds them too. So hot prefixes replicate by themselves, which
following the longest match alone never does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from operator import itemgetter

from diptych.messages import Role
from router.placement.policy import Pick
from router.placement.scene import Local, Scene
from router.placement.views import REMOTE, WorkerView

MAX_PAIRS = 256  # looked at before the search ends with the best so far; two or three are usual


@dataclass(frozen=True, slots=True)
class MinTtft:
    def filter(self, scene: Scene, workers: Sequence[WorkerView]) -> Sequence[WorkerView]:
        """Decode workers with room for prompt and completion; if there are none, for the prompt; else all."""
        if workers[0].role is Role.PREFILL:
            return workers
        roomy = [worker for worker in workers if scene.has_room(worker, to_grow=True)]
        return roomy or [worker for worker in workers if scene.has_room(worker)] or workers

    def prefill_cost(self, scene: Scene, worker: WorkerView) -> float:
        return scene.first_token_ms(worker)

    def decode_cost(self, scene: Scene, worker: WorkerView) -> float:
        return scene.decode_ms(worker)

    def pick(self, scene: Scene, prefills: Sequence[WorkerView], decodes: Sequence[WorkerView]) -> Pick | None:
        if not prefills:
            return None
        by_decode = _by_decode(self, scene, decodes)
        found = _cheapest_pair(self, scene, prefills, by_decode)
        if found is None or scene.local is not Local.IF_SOONER:
            return found and found[1]
        pair_ms, pick = found
        alone_ms, alone = _cheapest_alone(scene, by_decode, pair_ms)
        reason = _why_alone(scene, alone_ms, alone, pair_ms, pick) if alone else ""
        return Pick(None, alone, reason, pick.prefills, pick.decodes) if alone and reason else pick


Costed = list[tuple[float, WorkerView]]


def _by_decode(policy: MinTtft, scene: Scene, decodes: Sequence[WorkerView]) -> Costed:
    """By cost; equals by batch size (where nobody has measured it is all there is), then by what they hold."""
    costed = [(policy.decode_cost(scene, d), d.num_running, -scene.matched(d), d) for d in scene.dice.rotated(decodes)]
    costed.sort(key=itemgetter(0, 1, 2))
    return [(ms, decode) for ms, _, _, decode in costed]


def _cheapest_pair(
    policy: MinTtft, scene: Scene, prefills: Sequence[WorkerView], by_decode: Costed
) -> tuple[float, Pick] | None:
    """Branch and bound: both roles in order of cost, until what is left cannot be cheaper, whatever its link.

    Exact up to `MAX_PAIRS`. O(workers log workers) where links are alike, because then one of the first pairs is best.
    """
    least_decode_ms, longest = by_decode[0][0], max(scene.matched(decode) for _, decode in by_decode)
    by_prefill = [(policy.prefill_cost(scene, p), -scene.matched(p), p) for p in scene.dice.rotated(prefills)]
    by_prefill.sort(key=itemgetter(0, 1))
    best_ms, best, looked = inf, None, 0
    for prefill_ms, _, prefill in by_prefill:
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
    return best_ms, Pick(*best, REMOTE, [each[2] for each in by_prefill], [each for _, each in by_decode])


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
