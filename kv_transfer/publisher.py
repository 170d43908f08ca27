"""Writes a worker's event log to Redis, off the step loop.

`publish` only takes the events into an `EventLog`, which decides what is written. A background task writes it: at once
when nothing was sent lately, else what has gathered every few milliseconds. Before each write it looks at where the log
in Redis ends. If that is not where it was left (Redis was flushed, restarted, or failed over to a replica that lags),
the log is fenced and starts again from a snapshot.

Knows nothing about blocks, tokens or routers.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import ReadOnlyError, ResponseError

from diptych.membership import REDIS_ERRORS, stop_if_cancelled
from kv_transfer.event_log import EventLog, Write
from kv_transfer.schema import EVENTS_FIELD, INDEX_TTL_MS, Events, events_key, snapshot_key, wanted_key

log = logging.getLogger(__name__)

FLUSH_S = 0.01  # events of so long travel together; an index lag of 1 s would still be harmless
HEARTBEAT_S = 1.0  # notices that Redis lost its data or that a router wants a new log, and keeps the keys alive
MAX_BACKOFF_S = 1.0


class IndexPublisher:
    """Publishes one worker incarnation's cache. Create it before the first event and `run` it until the worker ends."""

    def __init__(self, redis: Redis, cluster: str, worker_id: str, event_log: EventLog | None = None) -> None:
        self.degraded = ""  # why Redis does not have everything; empty: it has, or is about to
        self.batches_total = 0
        self._redis = redis
        self._events_key = events_key(cluster, worker_id)
        self._snapshot_key = snapshot_key(cluster, worker_id)
        self._wanted_key = wanted_key(cluster, worker_id)
        self._log = event_log or EventLog()
        self._beat_at = 0.0  # monotonic, when the next heartbeat is due
        self._sent_at = 0.0
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()

    @property
    def num_hashes(self) -> int:
        """Blocks the cache holds, all published events applied."""
        return self._log.digest.num_blocks

    @property
    def epoch(self) -> int:
        return self._log.epoch

    @property
    def overflows_total(self) -> int:
        return self._log.overflows_total

    def publish(self, events: Events) -> None:
        """Queue one change; never waits."""
        if not self._log.publish(events, time.time()):
            log.warning("the index log starts again: its queue overflowed")
        self._idle.clear()
        self._wake.set()

    async def flush(self) -> None:
        """Wait until Redis has everything that was published before."""
        self._idle.clear()
        self._wake.set()
        await self._idle.wait()

    async def run(self) -> None:
        """Send until cancelled; survives Redis being away."""
        backoff_s = FLUSH_S
        while True:
            stop_if_cancelled()
            try:
                await self.send()
            except REDIS_ERRORS as error:
                self.degraded = f"Redis: {error!r}"
                if isinstance(error, ReadOnlyError):  # a demoted primary: the address may lead to another one by now
                    await self._redis.connection_pool.disconnect(inuse_connections=False)
                backoff_s = min(backoff_s * 2, MAX_BACKOFF_S)
                await asyncio.sleep(backoff_s)
                continue
            self.degraded, backoff_s = "", FLUSH_S
            if not self._log.has_news:
                self._idle.set()
                await self._wait()
            await asyncio.sleep(max(0.0, self._sent_at + FLUSH_S - time.monotonic()))

    async def _wait(self) -> None:
        """Until there is something to send, or a heartbeat is due."""
        self._wake.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, self._beat_at - time.monotonic())):
                await self._wake.wait()

    async def send(self) -> None:
        """Write what is next, if anything, with a heartbeat when one is due.

        Raises:
            RedisError, OSError, TimeoutError: it may or may not be written; to be tried again.
        """
        write, now = self._log.next_write(), time.monotonic()
        beat = now >= self._beat_at or (write is not None and not write.after)  # no key is ever without a time to live
        if write is None and not beat:
            return
        answers = await self._execute(write, beat)
        self._sent_at = now
        if beat:
            self._beat_at = now + HEARTBEAT_S
        if why := self._doubt(write, answers):
            log.warning("the index log starts again: %s", why)
            last_epoch = answers["last"].partition("-")[0]
            self._log.fence(at_least=int(last_epoch or 0))
        elif write is not None:
            self._log.written()
            self.batches_total += 1

    async def _execute(self, write: Write | None, beat: bool) -> dict[str, Any]:
        """One round trip. The answers by name; "last" is the id the stream ended with before.

        Raises:
            RedisError: any command but an append that the server refused for its id.
        """
        names = ["last"]
        async with self._redis.pipeline(transaction=write is not None and bool(write.snapshot)) as pipe:
            pipe.xrevrange(self._events_key, count=1)
            if write is not None:
                names.append("added")
                pipe.xadd(
                    self._events_key,
                    {EVENTS_FIELD: write.batch},
                    id=write.stream_id,
                    nomkstream=bool(write.after),
                    minid=write.trim_before or None,
                    approximate=False,
                )
                if write.snapshot:
                    names.append("snapshot")
                    pipe.set(self._snapshot_key, write.snapshot, px=INDEX_TTL_MS)
            if beat:
                names += ["events_alive", "snapshot_alive"]
                pipe.pexpire(self._events_key, INDEX_TTL_MS)
                pipe.pexpire(self._snapshot_key, INDEX_TTL_MS)
            if write is not None and not write.after:  # what was asked for is there with this, and not before
                names.append("granted")
                pipe.delete(self._wanted_key)
            elif beat:
                names.append("wanted")
                pipe.get(self._wanted_key)
            answers = dict(zip(names, await pipe.execute(raise_on_error=False), strict=True))
        for name, answer in answers.items():
            refused = name == "added" and isinstance(answer, ResponseError) and "equal or smaller" in str(answer)
            if isinstance(answer, Exception) and not refused:
                raise answer
        answers["last"] = answers["last"][0][0].decode() if answers["last"] else ""
        return answers

    def _doubt(self, write: Write | None, answers: dict[str, Any]) -> str:
        """Why the log in Redis is not what was written, or ""."""
        last = answers["last"]
        if write is None:
            kept = last == self._log.last_id
        else:  # or it was there already: the answer to the first attempt was lost
            kept = last == write.stream_id or ((last == write.after or not write.after) and _is_id(answers["added"]))
        if not kept:
            return f"Redis does not hold what was written (its log ends with {last or 'nothing'})"
        if not (answers.get("events_alive", True) and answers.get("snapshot_alive", True)):
            return "Redis lost its snapshot"
        if answers.get("wanted"):
            return "a router asked for it"
        return ""


def _is_id(answer: object) -> bool:
    """What XADD answers when it has appended: not when there is no stream, nor when it refused the id."""
    return isinstance(answer, bytes)
