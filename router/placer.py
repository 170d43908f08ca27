"""Chooses a pair for a request and books it, in one step nobody can come between; and learns from how it went.

The shell around `router.placement`: gathers what the index, the workers, the bookings and experience say right now, and
tells the ring of decisions (`explain`) and the metrics what came of it. Where there are other routers, `sharing`
sees to it that they do not come between either. Knows nothing about links, legs or text.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from diptych.errors import DiptychError, NoCapacity
from kv_transfer.schema import join_hashes
from router.attempts import Attempts
from router.bookings import Booking, Bookings
from router.experience import Experience
from router.explain import ExplainRing
from router.fleet import Fleet
from router.limits import Limits
from router.placement import Avoid, Placement, PromptView, place
from router.placement.crossover import crossover_tokens
from router.placement.policy import Policy
from router.placement.workers import Roster
from router.placement_metrics import PlacementMetrics
from router.prefix_index import PrefixIndex
from router.requests import Report, TokenRequest
from router.sharing.load import GUESS_LASTS_S, Guess
from router.sharing.reservations import Reservations
from router.sharing.talk import Chosen
from router.suspects import Suspects

MAX_TOLD_BLOCKS = 512  # of one prompt, to other routers; the worker itself tells them of the rest a little later


@dataclass(frozen=True, slots=True)
class Booked:
    placement: Placement
    booking: Booking

    @property
    def worker_ids(self) -> tuple[str, ...]:
        return _worker_ids(self.placement)


class Placer:
    """
    Args:
        seed: of ties; another one for each router, so that they do not all choose the same of several equals.
        reservations: None: other routers, if there are any, are not asked.
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
        reservations: Reservations | None = None,
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
        self._reservations = reservations
        self._experience = Experience()
        self._roster = Roster()
        self._turn = 0
        self._tentative: list[_Claim] = []  # chosen, and perhaps to be undone

    async def place(
        self,
        request: TokenRequest,
        hashes: Sequence[bytes],
        attempts: Attempts,
        report: Report,
        *,
        alone: bool = False,
    ) -> Booked:
        """Note in the report what was believed. The workers are placeable when this returns.

        Args:
            alone: as `PromptView` has it.

        Raises:
            NoCapacity: no worker can take it now.
            DiptychError: what an earlier attempt failed with, if there is nowhere left to try.
        """
        while True:
            claim = _Claim(self, request, hashes, attempts, alone)
            try:
                if self._reservations is None or request.canary:
                    claim.choose()
                else:
                    await self._reservations.reserve(claim)
                if all(map(self._fleet.is_placeable, claim.booked.worker_ids)):
                    return self._placed(claim, report)
            except BaseException:
                claim.undo()
                raise
            claim.undo()  # a worker left while others were asked

    def _placed(self, claim: _Claim, report: Report) -> Booked:
        """The choice stands."""
        self._tentative.remove(claim)
        now, request, booked, attempts = time.monotonic(), claim.request, claim.booked, claim.attempts
        self._index.guess(booked.worker_ids, claim.hashes, now + GUESS_LASTS_S)
        report.placed(booked.placement, attempts.num_failed, now)
        if not request.canary:
            self._ring.placed(request, booked.placement, attempts.num_failed, claim.took_s)
            self._metrics.placed(booked.placement, len(request.prompt), now, claim.took_s)
        return booked

    def choose_for(self, claim: _Claim) -> tuple[Booked, Chosen]:
        """On the present view, in which what is tentative counts like anything else."""
        num_tokens = len(claim.request.prompt)
        usable = claim.hashes[: (num_tokens - 1) // self._limits.block_size]  # one token is always computed
        now = time.monotonic()
        matches = self._index.matches(usable, now)
        for other in self._tentative:
            num_shared = _num_shared(usable, other.hashes)
            for worker_id in other.booked.worker_ids if num_shared else ():
                matches[worker_id] = max(num_shared, matches.get(worker_id, 0))
        placement = self._choose(claim, matches, now)
        told = _told(_worker_ids(placement), claim.hashes, usable, matches)
        booking = self._bookings.book(placement, num_tokens, self._limits.num_blocks(num_tokens))
        self._tentative.append(claim)  # from here on nothing may fail: the claim alone can give it back
        return Booked(placement, booking), told

    def forget(self, claim: _Claim) -> None:
        """A choice that was undone."""
        if claim in self._tentative:
            self._tentative.remove(claim)

    def _choose(self, claim: _Claim, matches: Mapping[str, int], now: float) -> Placement:
        limits, request, attempts = self._limits, claim.request, claim.attempts
        num_tokens = len(request.prompt)
        learnt = self._experience.learnt(request.sampling.max_tokens)
        prompt = PromptView(
            num_tokens,
            limits.num_blocks(num_tokens),
            limits.block_bytes,
            force_remote=request.canary,
            growth_blocks=limits.num_blocks(int(learnt.expected_tokens)),
            alone=claim.alone,
        )
        self._turn += 1

        def place_avoiding(avoid: Avoid) -> Placement:
            return place(
                prompt,
                self._fleet.views(self._bookings, request.through),
                limits.remote_prefill,
                self._turn,
                avoid if request.canary else avoid | self._suspects.avoid(now),
                matches={worker_id: blocks * limits.block_size for worker_id, blocks in matches.items()},
                policy=self._policy,
                learnt=learnt,
                seed=self._seed,
                roster=self._roster,
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


class _Claim:
    """One request being placed. Implements `sharing.reservations.Claim`."""

    def __init__(
        self, placer: Placer, request: TokenRequest, hashes: Sequence[bytes], attempts: Attempts, alone: bool
    ) -> None:
        self.request = request
        self.hashes = hashes
        self.attempts = attempts
        self.alone = alone
        self.took_s = 0.0  # of the latest choice, with look-up and booking
        self._placer = placer
        self._booked: Booked | None = None

    @property
    def booked(self) -> Booked:
        assert self._booked is not None, "nothing has been chosen"
        return self._booked

    def choose(self) -> Chosen:
        began = time.perf_counter()
        try:
            self._booked, chosen = self._placer.choose_for(self)
        except NoCapacity as error:
            raise self.attempts.error or error from None  # what failed says more than that nobody else is there
        self.took_s = time.perf_counter() - began
        return chosen

    def undo(self) -> None:
        if self._booked is not None:
            self._booked.booking.release()
            self._placer.forget(self)
            self._booked = None


def _worker_ids(placement: Placement) -> tuple[str, ...]:
    return tuple(filter(None, (placement.prefill_id, placement.decode_id)))


def _told(
    worker_ids: tuple[str, ...], hashes: Sequence[bytes], usable: Sequence[bytes], matches: Mapping[str, int]
) -> Chosen:
    """What other routers have to know of a choice: what it relied on, and what its workers will hold soon."""
    longest, least = max(matches.values(), default=0), min(matches.get(name, 0) for name in worker_ids)
    news = tuple(f"#{join_hashes([usable[longest]]).hex()}" for _ in range(longest < len(usable)))
    return Chosen(worker_ids + news, Guess(worker_ids, join_hashes(hashes[least : least + MAX_TOLD_BLOCKS])))


def _num_shared(ours: Sequence[bytes], theirs: Sequence[bytes]) -> int:
    """Leading blocks two prompts have in common: a hash stands for all before it, so bisection finds the last."""
    low, high = 0, min(len(ours), len(theirs))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if ours[middle - 1] == theirs[middle - 1] else (low, middle - 1)
    return low
