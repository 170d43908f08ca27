"""Chooses a pair for a request and books it, in one step nobody can come between; and learns from how it went.

The shell around `router.placement`: gathers what the index, the workers, the bookings and experience say right now, and
tells the ring of decisions (`explain`) and the metrics what came of it. Knows nothing about links, legs or text.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from diptych.errors import DiptychError, NoCapacity
from router.attempts import Attempts
from router.bookings import Booking, Bookings
from router.experience import Experience
from router.explain import ExplainRing
from router.fleet import Fleet
from router.limits import Limits
from router.placement import Avoid, Placement, PromptView, place
from router.placement.crossover import crossover_tokens
from router.placement.policy import Policy
from router.placement_metrics import PlacementMetrics
from router.prefix_index import PrefixIndex
from router.requests import Report, TokenRequest
from router.suspects import Suspects

GUESS_LASTS_S = 5.0  # a just-placed prefix counts as cached until the worker's own event says so


@dataclass(frozen=True, slots=True)
class Booked:
    placement: Placement
    booking: Booking


class Placer:
    """
    Args:
        seed: of ties; another one for each router, so that they do not all choose the same of several equals.
    """

    def __init__(
        self,
        limits: Limits,
        policy: Policy,
        seed: int,
        fleet: Fleet,
        index: PrefixIndex,
        bookings: Bookings,
        suspects: Suspects,
        ring: ExplainRing,
        metrics: PlacementMetrics,
    ) -> None:
        self._limits = limits
        self._policy = policy
        self._seed = seed
        self._fleet = fleet
        self._index = index
        self._bookings = bookings
        self._suspects = suspects
        self._ring = ring
        self._metrics = metrics
        self._experience = Experience()
        self._turn = 0

    def place(self, request: TokenRequest, hashes: Sequence[bytes], attempts: Attempts, report: Report) -> Booked:
        """Note in the report what was believed.

        Raises:
            NoCapacity: no worker can take it now.
            DiptychError: what an earlier attempt failed with, if there is nowhere left to try.
        """
        now, began = time.monotonic(), time.perf_counter()
        try:
            placement = self._choose(request, hashes, attempts, now)
        except NoCapacity as error:
            raise attempts.error or error from None  # what failed says more than that nobody else is there
        num_tokens = len(request.prompt)
        booking = self._bookings.book(placement, num_tokens, self._limits.num_blocks(num_tokens))
        for worker_id in filter(None, (placement.prefill_id, placement.decode_id)):
            self._index.guess(worker_id, hashes, now + GUESS_LASTS_S)
        took_s = time.perf_counter() - began
        report.placed(placement, attempts.num_failed, now)
        if not request.canary:
            self._ring.placed(request, placement, attempts.num_failed, took_s)
            self._metrics.placed(placement, num_tokens, now, took_s)
        return Booked(placement, booking)

    def _choose(self, request: TokenRequest, hashes: Sequence[bytes], attempts: Attempts, now: float) -> Placement:
        limits, num_tokens = self._limits, len(request.prompt)
        usable = hashes[: (num_tokens - 1) // limits.block_size]  # one token is always computed
        matches = self._index.matches(usable, now)
        learnt = self._experience.learnt(request.sampling.max_tokens)
        prompt = PromptView(
            num_tokens,
            limits.num_blocks(num_tokens),
            limits.block_bytes,
            force_remote=request.canary,
            growth_blocks=limits.num_blocks(int(learnt.expected_tokens)),
        )
        self._turn += 1

        def place_avoiding(avoid: Avoid) -> Placement:
            return place(
                prompt,
                self._fleet.views(self._bookings),
                limits.remote_prefill,
                self._turn,
                avoid if request.canary else avoid | self._suspects.avoid(now),
                matches={worker_id: blocks * limits.block_size for worker_id, blocks in matches.items()},
                policy=self._policy,
                learnt=learnt,
                seed=self._seed,
            )

        try:
            return place_avoiding(attempts.avoid_if_possible)
        except NoCapacity:
            if not attempts.num_failed:
                raise
            return place_avoiding(attempts.avoid)

    def ended(self, request: TokenRequest, report: Report, error: DiptychError | None) -> None:
        """A request that was placed, or could not be, is over."""
        if request.canary:
            return
        if error is None:
            self._experience.ended(report, request.sampling.n)
        self._ring.ended(request, report, error)

    def crossover(self) -> float:
        """From how many uncached tokens on a prefill worker pays, as things are now (see `crossover_tokens`).

        Raises:
            NoCapacity: no decode worker is there.
        """
        limits = self._limits
        return crossover_tokens(
            self._fleet.views(self._bookings),
            self._policy,
            self._experience.learnt(limits.max_context),
            self._suspects.avoid(time.monotonic()),
            max_tokens=limits.max_context,
            block_size=limits.block_size,
            block_bytes=limits.block_bytes,
        )
