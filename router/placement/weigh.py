"""What each choice would have cost, term by term: for people to read, after the fact."""

from __future__ import annotations

import msgspec

from router.placement.scene import Considered, Local, Scene
from router.placement.views import WorkerView


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """One pair, or decode alone, and each term of its cost in estimated milliseconds."""

    prefill: str | None  # None: decode computes the prompt itself
    decode: str
    cached_tokens: int  # believed, where the prompt would be computed
    queue_ms: float
    prefill_ms: float
    exposed_transfer_ms: float
    disturbance_ms: float  # what sequences that decode there would lose together
    decode_ms: float  # of a completion as long as they were lately
    ttft_ms: float  # queue and prefill
    cost_ms: float  # all terms


def weigh(considered: Considered) -> list[Candidate]:
    """Every pair of the workers considered, and each decode worker alone where that was possible.

    Without prefill workers disturbance does not count: some streams are disturbed wherever the prompt goes.
    """
    scene, apart = considered.scene, bool(considered.prefills)
    ways: list[WorkerView | None] = [*considered.prefills]
    if scene.local is not Local.NEVER or not ways:
        ways.append(None)
    return [_candidate(scene, p, d, apart) for p in ways for d in considered.decodes if scene.allows(p, d)]


def _candidate(scene: Scene, prefill: WorkerView | None, decode: WorkerView, apart: bool) -> Candidate:
    computing = prefill or decode
    queue_ms, prefill_ms = scene.queue_ms(computing), scene.prefill_ms(computing)
    exposed_ms = scene.exposed_ms(prefill, decode) if prefill else 0.0
    disturbance_ms = 0.0 if prefill or not apart else scene.disturbance_ms(decode)
    decode_ms = scene.decode_ms(decode)
    return Candidate(
        prefill=prefill.worker_id if prefill else None,
        decode=decode.worker_id,
        cached_tokens=scene.matched(computing),
        queue_ms=queue_ms,
        prefill_ms=prefill_ms,
        exposed_transfer_ms=exposed_ms,
        disturbance_ms=disturbance_ms,
        decode_ms=decode_ms,
        ttft_ms=queue_ms + prefill_ms,
        cost_ms=queue_ms + prefill_ms + exposed_ms + disturbance_ms + decode_ms,
    )
