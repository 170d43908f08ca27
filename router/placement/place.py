"""Where a request goes: a pure function from (request, fleet view, matches, rates) to (prefill, decode, ms and why).

The same arguments give the same answer: ties are drawn by `seed` and `turn`. Knows no clock, socket or Redis.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from diptych.errors import NoCapacity
from router.placement.dice import Dice
from router.placement.min_ttft import MinTtft
from router.placement.policy import MAX_CONSIDERED, Pick, Policy, pick_alone
from router.placement.rates import Rates
from router.placement.scene import Considered, Local, Scene
from router.placement.views import NOTHING, UNLEARNT, Avoid, Learnt, Placement, PromptView, WorkerView
from router.placement.workers import Roster

RETRY_AFTER_S = 1.0
_LOCAL = {"auto": Local.IF_SOONER, "prefer": Local.IF_NEEDED, "always": Local.NEVER, "never": Local.IF_NEEDED}
_DEFAULT = MinTtft()


def place(
    prompt: PromptView,
    workers: Iterable[WorkerView],
    remote_prefill: str,
    turn: int,
    avoid: Avoid = NOTHING,
    *,
    matches: Mapping[str, int] | None = None,
    policy: Policy = _DEFAULT,
    learnt: Learnt = UNLEARNT,
    seed: int = 0,
    roster: Roster | None = None,
) -> Placement:
    """Choose the pair for one prompt.

    Args:
        remote_prefill: "auto", "prefer", "always" or "never" (`RouterConfig.remote_prefill`).
        turn: rises with every call.
        matches: tokens of the prompt that each worker is believed to hold; None: as the views say.
        seed: another one for each router, so that they do not draw the same worker at the same moment.
        roster: kept by the caller from one call to the next, so that only workers that changed are read again.

    Raises:
        NoCapacity: no worker can take it now.
    """
    views = list(workers)
    if avoid.workers:
        views, roster = [view for view in views if view.worker_id not in avoid.workers], None
    if matches is None:
        matches = {view.worker_id: view.matched_tokens for view in views if view.matched_tokens}
    prefills, decodes = (roster or Roster()).meet(views, matches)
    if not decodes:
        raise NoCapacity(
            "no decode worker is ready; start one, or retry when one has joined", retry_after_s=RETRY_AFTER_S
        )
    local = _LOCAL[remote_prefill]
    if prompt.force_remote and local is Local.IF_SOONER:
        local = Local.IF_NEEDED
    rates = Rates.mean_of(prefills, decodes)
    scene = Scene(prompt, matches, prefills, decodes, turn, Dice(seed, turn), avoid, learnt, local, rates)
    pick = _pick(policy, scene, prefills, decodes, remote_prefill)
    return _placement(scene, pick)


def _pick(
    policy: Policy, scene: Scene, prefills: Sequence[WorkerView], decodes: Sequence[WorkerView], remote_prefill: str
) -> Pick:
    if not (decodes := policy.filter(scene, decodes)):
        raise NoCapacity(f"{type(policy).__name__} considers no decode worker", retry_after_s=RETRY_AFTER_S)
    alone = remote_prefill == "never" or (scene.prompt.alone and scene.local is not Local.NEVER)
    use = policy.filter(scene, prefills) if prefills and not alone else ()
    pick = policy.pick(scene, use, decodes)
    if pick is None and scene.local is not Local.NEVER:
        reason = _why_no_pair(prefills, remote_prefill)
        pick = pick_alone(policy, scene, decodes, "prefill_busy" if scene.prompt.alone and prefills else reason)
    if pick is None:
        raise NoCapacity(_why_nowhere(prefills), retry_after_s=RETRY_AFTER_S)
    return pick


def _why_no_pair(prefills: Sequence[WorkerView], remote_prefill: str) -> str:
    if not prefills:
        return "no_prefill_worker"
    return "configured" if remote_prefill == "never" else "transfer_suspect"


def _why_nowhere(prefills: Sequence[WorkerView]) -> str:
    if prefills:
        return "every pair of workers has failed this request or is suspect; retry later"
    return "no prefill worker is ready and remote_prefill is 'always'; start one, or use 'auto'"


def _placement(scene: Scene, pick: Pick) -> Placement:
    computing = pick.prefill or pick.decode
    return Placement(
        prefill_id=pick.prefill.worker_id if pick.prefill else "",
        decode_id=pick.decode.worker_id,
        expected_ms=scene.first_token_ms(computing),
        predicted_cached=scene.matched(computing),
        reason=pick.reason,
        exposed_ms=scene.exposed_ms(pick.prefill, pick.decode) if pick.prefill else 0.0,
        matched_tokens=max(scene.matches.values(), default=0),
        considered=_considered(scene, pick),
    )


def _considered(scene: Scene, pick: Pick) -> Considered:
    """The best few, the chosen ones first. Their matches alone are kept: a thousand decisions are remembered."""
    prefills = _first(pick.prefill, pick.prefills)
    decodes = _first(pick.decode, pick.decodes)
    return Considered(scene.among(prefills, decodes), prefills, decodes)


def _first(chosen: WorkerView | None, others: Sequence[WorkerView]) -> tuple[WorkerView, ...]:
    best = others[:MAX_CONSIDERED]
    if chosen is None:
        return tuple(best)
    return (chosen, *[view for view in best if view is not chosen][: MAX_CONSIDERED - 1])
