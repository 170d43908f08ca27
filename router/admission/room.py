"""Whether the fleet can take one more request now, and for how long it has work: one moment's views.

A worker has room for a prompt while less than two full steps, or less than `max_worker_queue_ms` of work, are before
it: one step that computes and one that begins when that ends, so it never stands still for want of work, and
everything else waits in the router, where it can still be overtaken, placed elsewhere, refused and cancelled for
nothing. A decode worker has room while fewer decode there than its batch holds and an eighth more, and fewer than twice
as many when those are counted whose prompts are computed elsewhere.

Knows no clock and no queue.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from itertools import islice

from diptych.messages import Role
from router.admission.ask import Ask
from router.admission.line import Load
from router.placement import WorkerView
from router.placement.rates import Rates
from router.placement.workers import Workers

SPARE = 8  # one place more for so many: enough where a completion takes eight times the way to the router and back
FULL_STEPS = 2  # of prompt tokens: one computes, one is ready to follow


class Room:
    """Works out what it is asked for, so that a request that goes at once costs little."""

    def __init__(
        self,
        views: Sequence[WorkerView],
        max_worker_queue_ms: float,
        remote_prefill: str,
        prefilling: Mapping[str, int],
        end_ms: float = 0.0,
    ) -> None:
        """
        Args:
            prefilling: requests by decode worker, whose prompts are computed elsewhere at the moment.
            end_ms: between two places in decode's batches that become free.
        """
        self._end_ms = end_ms
        self._max_queue_ms = max_worker_queue_ms
        self._prefilling = prefilling
        self._decodes = [view for view in views if view.role is Role.DECODE]
        self._prefills = [view for view in views if view.role is Role.PREFILL] if remote_prefill != "never" else []
        self._may_go_alone = remote_prefill == "auto"

    def takes(self, num_granted: int) -> bool:
        """One more prompt, after `num_granted` that are about to be placed and count as one worker's room each.

        Where nobody could ever have room there is nothing to wait for: placement then says what is wrong.
        """
        if not self._decodes:
            return True
        decodes = filter(self._has_slot, self._decodes)
        if not self._prefills:
            return _more_than(num_granted, filter(self._has_queue_room, decodes))
        has_slot = next(decodes, None) is not None
        return has_slot and _more_than(num_granted, filter(self._has_queue_room, self._prefills))

    def takes_alone(self, ask: Ask, behind_ms: float) -> bool:
        """A decode worker could compute the prompt itself for less than it costs to have it wait for a prefill worker.

        By the terms of placement (`placement.scene`).

        Args:
            behind_ms: what those that wait with it would gain.
        """
        if not self._prefills or not self._may_go_alone:
            return False
        pair_ms = min(self._computed_ms(view, ask) for view in self._prefills)
        return any(
            self._has_slot(view) and self._has_queue_room(view) and self._alone_ms(view, ask) < pair_ms + behind_ms
            for view in self._decodes
        )

    @cached_property
    def soonest_ms(self) -> float:
        """Work before a new prompt, at the worker that has the least."""
        return min((view.queued_prefill_tokens * self._ms(view) for view in self._computing), default=0.0)

    @cached_property
    def opens_ms(self) -> float:
        """Until a worker that computes prompts has room; 0 where one has."""
        return min((max(0.0, self._excess_ms(view)) for view in self._computing), default=0.0)

    def work_ms(self, num_tokens: int) -> float:
        """What the whole fleet needs for so many tokens of prompts."""
        return num_tokens * self._fleet_ms

    def drain_ms(self, load: Load) -> float:
        """Until so much of what waits has been let through: by prompts, or by decode's places, whichever is slower."""
        return max(self.work_ms(load.tokens), load.requests * self._place_ms)

    def service_ms(self, ask: Ask) -> float:
        """What one worker needs for a prompt; 0 while nobody has measured it."""
        return ask.num_tokens * self._mean_ms if any(view.prefill_ms_per_token for view in self._computing) else 0.0

    @cached_property
    def _place_ms(self) -> float:
        """Until the next place in decode's batches becomes free; 0 while there are plenty."""
        num_free = sum([_places(view) - self._num_decoding(view) for view in self._decodes if view.max_running])
        bounded = all(view.max_running for view in self._decodes)
        return self._end_ms if bounded and num_free <= len(self._decodes) else 0.0

    @property
    def _computing(self) -> Sequence[WorkerView]:
        return self._prefills or self._decodes

    @cached_property
    def _unmeasured_ms(self) -> float:
        return Rates.mean_of(Workers.of(self._prefills, {}), Workers.of(self._decodes, {})).prefill_ms_per_token

    @cached_property
    def _mean_ms(self) -> float:
        """A token of a prompt, on one worker."""
        return sum([self._ms(view) for view in self._computing]) / max(1, len(self._computing))

    @cached_property
    def _fleet_ms(self) -> float:
        """A token of a prompt, if all compute at once."""
        return 1.0 / sum([1.0 / self._ms(view) for view in self._computing]) if self._computing else 0.0

    def _ms(self, view: WorkerView) -> float:
        return view.prefill_ms_per_token or self._unmeasured_ms

    def _has_queue_room(self, view: WorkerView) -> bool:
        queued = view.queued_prefill_tokens
        return queued < max(1, FULL_STEPS * view.chunk_tokens) or queued * self._ms(view) < self._max_queue_ms

    def _excess_ms(self, view: WorkerView) -> float:
        """Its work beyond what leaves room."""
        ms = self._ms(view)
        return view.queued_prefill_tokens * ms - max(self._max_queue_ms, FULL_STEPS * view.chunk_tokens * ms)

    def _has_slot(self, view: WorkerView) -> bool:
        places = _places(view)
        return not places or (self._num_decoding(view) < places and view.num_running < 2 * places)

    def _num_decoding(self, view: WorkerView) -> int:
        return view.num_running - self._prefilling.get(view.worker_id, 0)

    def _computed_ms(self, view: WorkerView, ask: Ask) -> float:
        """Its queue and the prompt."""
        return (view.queued_prefill_tokens + ask.uncached(view.worker_id)) * self._ms(view)

    def _alone_ms(self, view: WorkerView, ask: Ask) -> float:
        """The same, and by how much it would make the sequences running there later together."""
        num_tokens = ask.uncached(view.worker_id)
        steps = -(-num_tokens // view.chunk_tokens) if view.chunk_tokens else 1
        step_ms = view.decode_base_ms + view.decode_ms_per_sequence * (view.num_running + 1)
        longer_ms = max(0.0, num_tokens * self._ms(view) - steps * step_ms)
        return self._computed_ms(view, ask) + view.num_running * longer_ms


def _places(view: WorkerView) -> int:
    """Sequences of its batch, and those that step in while word of a free place is under way; 0: not said."""
    return view.max_running and view.max_running + max(1, view.max_running // SPARE)


def _more_than(count: int, items: Iterable[WorkerView]) -> bool:
    return next(islice(iter(items), count, None), None) is not None
