"""A core that says what a test tells it to: a real async generator that records how each request ended."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field

from diptych.errors import DiptychError
from diptych.messages import FinishReason, LegStats, TokenLogprob, Update
from router.requests import Report, TokenRequest

Script = Callable[[TokenRequest], Sequence[Update]]


@dataclass
class ScriptedCore:
    """Yields `script(request)`; after `fail_after` updates raises `error`, after `hold_after` waits for `release`."""

    script: Script
    error: Exception | None = None
    fail_after: int = 0
    hold_after: int | None = None
    release: asyncio.Event = field(default_factory=asyncio.Event)
    holding: asyncio.Event = field(default_factory=asyncio.Event)
    closed: asyncio.Event = field(default_factory=asyncio.Event)  # the last generator has ended, however
    requests: list[TokenRequest] = field(default_factory=list)
    endings: list[str] = field(default_factory=list)
    held: asyncio.Queue[str] = field(default_factory=asyncio.Queue)  # request ids, as they begin to wait
    ended: asyncio.Queue[str] = field(default_factory=asyncio.Queue)  # request ids, as they end
    prefill: LegStats = field(default_factory=LegStats)
    decode: LegStats | None = None

    async def generate(self, request: TokenRequest, report: Report) -> AsyncGenerator[Update, None]:
        self.requests.append(request)
        report.prefill_id, report.decode_id, report.reason = "prefill-a", "decode-b", "remote prefill is cheaper"
        report.prefill, report.decode = self.prefill, self.decode
        ending = "closed"
        try:
            for i, update in enumerate(self.script(request)):
                await self._interfere(i, request.request_id)
                yield update
            await self._interfere(-1, request.request_id)
            ending = "finished"
        except asyncio.CancelledError:
            ending = "cancelled"
            raise
        except DiptychError as error:
            ending = error.code
            raise
        finally:
            self.endings.append(ending)
            self.closed.set()
            self.ended.put_nowait(request.request_id)

    async def _interfere(self, i: int, request_id: str) -> None:
        if self.error is not None and i in (self.fail_after, -1):
            raise self.error
        if i == self.hold_after:
            self.holding.set()
            self.held.put_nowait(request_id)
            await self.release.wait()


def say(
    token_ids: Sequence[int],
    *,
    eos: int | None = None,
    choices: int = 1,
    per_update: int = 1,
    logprobs: bool = False,
) -> list[Update]:
    """Updates of `choices` equal choices, interleaved; they stop at `eos`, or end by length without it."""
    ids = [*token_ids, *([] if eos is None else [eos])]
    reason = FinishReason.LENGTH if eos is None else FinishReason.STOP
    updates = []
    for start in range(0, len(ids), per_update):
        part = ids[start : start + per_update]
        entries = [TokenLogprob(token, -0.5, [(token, -0.5), (ids[0], -1.5)]) for token in part] if logprobs else None
        last = reason if start + per_update >= len(ids) else None
        updates += [Update("r", choice, start, part, last, entries) for choice in range(choices)]
    return updates
