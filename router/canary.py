"""Whether the cluster answers: a small request of the router's own, end to end, whenever no real one has proved it, and
through every worker that has joined before clients' requests go there (`router.proving`).

`/health` tells what was last proved and how long ago; nothing latches: a proof grows old and expires.

Any request that succeeds proves that the cluster answers. A worker has more to prove: where prompts go to prefill
workers, that KV moves between it and its peer. An answer that decode computed alone, because the transfer failed or
came damaged, proves neither.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from uuid import uuid4

from diptych.errors import DiptychError
from diptych.messages import Role, SamplingParams
from router.fleet import Fleet
from router.frontend import HealthView
from router.requests import Core, Report, TokenRequest

DEADLINE_MS = 30_000
PROBE_DEADLINE_MS = 10_000  # of a canary through a worker that is yet to prove itself: others wait for their turn
PROOF_LASTS = 3  # canary intervals
MAX_PROBES = 4  # under way at once: a fleet of hundreds starts in seconds, and nobody is flooded
RETRY_S = 0.25  # after a failed canary, and how often the fleet is looked at


class Canary:
    """
    Args:
        interval_s: idle time after which a canary is sent; 0: only until one has succeeded.
        clock: monotonic seconds.
        uses_prefill: whether prompts go to prefill workers at all; without, there is nothing to prove of them.
        num_open: requests and bookings held by this router, for the detail of /health.
        degraded: what this router does without at the moment, in words.
    """

    def __init__(
        self,
        fleet: Fleet,
        block_size: int,
        interval_s: float,
        clock: Callable[[], float],
        uses_prefill: bool,
        num_open: Callable[[], dict[str, int]],
        degraded: Callable[[], list[str]],
    ) -> None:
        self._fleet = fleet
        self._prompt = [1 + i % 7 for i in range(2 * block_size + 1)]  # full blocks and a partial one
        self._interval_s = interval_s
        self._clock = clock
        self._uses_prefill = uses_prefill
        self._num_open = num_open
        self._degraded = degraded
        self._proved_at: float | None = None
        self._proved_for: tuple[int, int] = (0, 0)  # prefill and decode workers that had proved themselves then
        self._probes: set[asyncio.Task[None]] = set()
        self._regular: asyncio.Task[None] | None = None  # through whoever is chosen; one at a time
        self._last_error = "no canary has been sent yet"

    def ended(self, request: TokenRequest, error: DiptychError | None) -> None:
        """Told of every request's end: any success is a proof."""
        if error is None:
            self._proved_at = self._clock()
        elif request.canary:
            self._last_error = error.message

    async def run(self, core: Core) -> None:
        """Send canaries when they are due, for ever. None waits for another, which may hang."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                self._probe(core, tasks)
                if self._due() and (self._regular is None or self._regular.done()):
                    self._regular = tasks.create_task(self._prove_cluster(core))
                self._fleet.changed.clear()
                try:
                    async with asyncio.timeout(RETRY_S):
                        await self._fleet.changed.wait()
                except TimeoutError:
                    pass

    def view(self) -> HealthView:
        prefill, decode = self._proved()
        ready = bool(self._fleet.num_ready(Role.DECODE))
        reasons = []
        if not ready:
            reasons.append("no decode worker is ready")
        if not self._proof_holds():
            reasons.append(f"no request went end to end lately; the last canary: {self._last_error}")
        refused = [f"{worker} is refused: {why}" for worker, why in self._fleet.refused.items()]
        return HealthView(
            healthy=not reasons,
            ready=ready,
            reasons=(*reasons, *refused),
            details={
                "prefill_workers": prefill,
                "decode_workers": decode,
                "probing": dict(self._fleet.proving.reasons),
                "degraded": self._degraded(),
                **self._num_open(),
            },
        )

    def _proved(self) -> tuple[int, int]:
        return self._fleet.num_proved(Role.PREFILL), self._fleet.num_proved(Role.DECODE)

    def _probe(self, core: Core, tasks: asyncio.TaskGroup) -> None:
        """Send canaries through workers that are yet to prove themselves, a few at a time."""
        proving, fleet = self._fleet.proving, self._fleet
        for worker_id in fleet.ready(Role.PREFILL) if not self._uses_prefill else ():
            proving.proved(worker_id)
        decodes = fleet.ready(Role.DECODE)
        ready = {*fleet.ready(Role.PREFILL), *decodes} if decodes else set()
        while len(self._probes) < MAX_PROBES and (through := proving.next(ready, self._clock())):
            task = tasks.create_task(self._prove(core, through))
            self._probes.add(task)
            task.add_done_callback(self._probe_ended)

    def _probe_ended(self, task: asyncio.Task[None]) -> None:
        self._probes.discard(task)  # before whoever fills its place wakes up
        self._fleet.changed.set()

    async def _prove(self, core: Core, through: tuple[str, ...]) -> None:
        report = Report()
        reason = await self._send(core, report, PROBE_DEADLINE_MS, through) or self._unproven(report)
        if not reason:
            for worker_id in {report.prefill_id, report.decode_id} - {""}:
                self._fleet.proving.proved(worker_id)
            self._proved_for = self._proved()
        self._fleet.proving.failed(through, reason or "it went elsewhere", self._clock())

    def _unproven(self, report: Report) -> str:
        """Why a canary that succeeded proves no worker; "": it does."""
        if not self._uses_prefill or not self._fleet.num_ready(Role.PREFILL):
            return ""
        if not report.prefill_id:
            return "it was answered without prefill: no KV could be moved"
        if report.decode is None or not report.decode.transfer_bytes:
            return "its KV did not arrive whole, so decode computed the prompt itself"
        return ""

    async def _prove_cluster(self, core: Core) -> None:
        proved = self._proved()
        if not await self._send(core, Report(), DEADLINE_MS):
            self._proved_for = proved

    def _due(self) -> bool:
        """Whether a canary should go where any request might. The very first proof is left to the probes."""
        if not self._fleet.num_ready(Role.DECODE):
            return False
        if self._proved_at is None:
            return not self._probes
        if self._proved() != self._proved_for:
            return True
        return self._interval_s > 0 and self._clock() - self._proved_at >= self._interval_s

    def _proof_holds(self) -> bool:
        if self._proved_at is None:
            return False
        return not self._interval_s or self._clock() - self._proved_at < PROOF_LASTS * self._interval_s

    async def _send(self, core: Core, report: Report, deadline_ms: int, through: tuple[str, ...] = ()) -> str:
        """Why it failed; "": it has not."""
        request = TokenRequest(
            request_id=f"canary-{uuid4().hex[:12]}",
            prompt=self._prompt,
            sampling=SamplingParams(max_tokens=2, seed=0, temperature=0.0),
            cache_scope=b"canary",
            deadline_ms=deadline_ms,
            canary=True,
            through=through,
        )
        try:
            async for _ in core.generate(request, report):
                pass
        except DiptychError as error:
            return error.message
        except Exception as error:  # a bug of ours, which the core has counted and traced
            return type(error).__name__
        return ""
