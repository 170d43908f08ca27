"""Sends the planned requests of one process, each at its time or, in a closed loop, when a client is free, and keeps a
record of each.

Latencies count from the intended time, so waiting in this process is part of them, and is also written down: a
generator that falls behind must not look like a fast server (coordinated omission).
"""

from __future__ import annotations

import asyncio
from collections import Counter

from loadgen.client.answer import Answer
from loadgen.client.bodies import Bodies
from loadgen.client.clock import now_s, sleep_until
from loadgen.client.config import Progress
from loadgen.client.connection import ConnectionLost
from loadgen.client.plan import Planned
from loadgen.client.pool import Pool
from loadgen.client.records import Record


class Sender:
    """
    Args:
        start_s: when the run starts, on the monotonic clock.
    """

    def __init__(self, pool: Pool, bodies: Bodies, timeout_s: float, start_s: float) -> None:
        self.records: list[Record] = []
        self._pool = pool
        self._bodies = bodies
        self._timeout_s = timeout_s
        self._start_s = start_s
        self._sent = 0
        self._failures: Counter[str] = Counter()

    def progress(self, planned: int) -> Progress:
        return Progress(planned=planned, sent=self._sent, ended=len(self.records), failures=dict(self._failures))

    async def open_loop(self) -> None:
        """Whatever the server does, requests go out at their times. Returns when every answer has ended."""
        async with asyncio.TaskGroup() as running:
            while (item := self._bodies.next()) is not None:
                planned, body = item
                due_s = self._start_s + planned.due_ms / 1e3
                await self._bodies.fill_until(due_s)
                await sleep_until(due_s)
                running.create_task(self._request(planned, body, due_s))
                await asyncio.sleep(0)  # late or not, what has come is read

    async def closed_loop(self, clients: int, stop_s: float | None) -> None:
        """`clients` at a time, until the plan ends or, if that is given, no more after `stop_s`."""
        await sleep_until(self._start_s)
        async with asyncio.TaskGroup() as running:
            for _ in range(clients):
                running.create_task(self._client(stop_s))

    async def _client(self, stop_s: float | None) -> None:
        while stop_s is None or now_s() < stop_s:
            free_s = now_s()
            item = self._bodies.next()
            if item is None:
                return
            await self._request(*item, due_s=free_s)

    async def _request(self, planned: Planned, body: bytes, due_s: float) -> None:
        answer = Answer()
        sent_s = now_s()
        self._sent += 1
        retried = False
        try:
            async with asyncio.timeout(self._timeout_s) as limit:
                retried = await self._post(body, answer)
        except TimeoutError:
            answer.failure = "timeout" if limit.expired() else "connect"
        except asyncio.CancelledError:
            answer.failure = "aborted"
            raise
        finally:
            self._keep(planned, answer, due_s, sent_s, retried)

    async def _post(self, body: bytes, answer: Answer) -> bool:
        try:
            return await self._pool.post(body, answer)
        except ConnectionLost:
            answer.failure = answer.failure or "cut"
        except OSError as error:
            if isinstance(error, TimeoutError):
                raise
            answer.failure = "connect"
        return False

    def _keep(self, planned: Planned, answer: Answer, due_s: float, sent_s: float, retried: bool) -> None:
        record = Record(
            index=planned.index,
            label=planned.label,
            intended_ms=round((due_s - self._start_s) * 1e3, 3),
            lag_ms=round((sent_s - due_s) * 1e3, 3),
            planned_input=planned.request.input_length,
            planned_output=planned.request.output_length,
            retried=retried,
        )
        answer.fill(record, due_s, now_s())
        if not record.ok:
            self._failures[record.failure] += 1
        self.records.append(record)


def clients_of_shard(concurrency: int, shard: int, shards: int) -> int:
    """A closed loop's clients, shared out as evenly as can be."""
    return concurrency // shards + (shard < concurrency % shards)
