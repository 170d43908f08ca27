"""The log in Redis in which routers tell each other what they place, and the script by which one of them goes first.

    {cluster}:reservations   STREAM   written by routers; gone LOG_TTL_MS after the last of them

It is one key, so everything here is in one slot of a Redis Cluster. An entry is one router's statement about its own
bookings: `r` its id, `b` msgpack of `load.Statement`, `m` its marks, one a line. Marks are what a choice relied
on: the workers it went to, and `#` with the index key of the prompt's first block that nobody was known to hold. Ids
are the server's clock, so a statement's age does not depend on anybody else's.

**Compare and append** is one script, so one step to everybody: what was appended after the reader's position is read;
if another router's entry among it bears one of the marks, the choice was made on an old view and nothing is written;
else the statement is appended. Either way the answer has what the reader did not know. Of two routers that choose on
the same view, exactly one gets in; the other chooses again on a view with the first one's choice in it.

**Memory.** Each append drops what is older than the lease, and what is more than MAX_ENTRIES. An entry is some 150
bytes, 50 for each worker it speaks of, and 8 for each block that is guessed (at most MAX_GUESSED_BLOCKS, 16 KiB): 1 kB
as a rule, so 3 MB at 1,000 placements a second, and never more than 4,096 x (16 KiB + 50 bytes x workers). There is
neither text nor a token in it; index keys are parts of keyed hashes.

Knows nothing about what statements mean or when they are made.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError, ReadOnlyError, RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from router.sharing.load import LEASE_S, Statement

log = logging.getLogger(__name__)

MAX_ENTRIES = 4_096
MAX_NEWS = 256  # entries in one answer
LOG_TTL_MS = 60_000
START = b"0-0"  # before every entry

_decode = msgspec.msgpack.Decoder(Statement).decode
_encode = msgspec.msgpack.Encoder().encode

_SCRIPT = """
local log, seen, router, body, marks = KEYS[1], ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local compare, lease_ms, max_entries, max_news, ttl_ms = ARGV[5] == '1', ARGV[6], ARGV[7], ARGV[8], ARGV[9]

local function numbers(id)
  local left, right = string.match(id, '^(%d+)-(%d+)$')
  return tonumber(left), tonumber(right)
end
local function is_before(one, other)
  local a, b = numbers(one)
  local c, d = numbers(other)
  return a < c or (a == c and b < d)
end

local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local newest = redis.call('XREVRANGE', log, '+', '-', 'COUNT', 1)
local top, lost = '0-0', 0
if newest[1] then top = newest[1][1] end
if is_before(top, seen) then seen, lost = '0-0', 1 end

local upto, news, taken = seen, {}, {}
if is_before(seen, top) then
  for _, entry in ipairs(redis.call('XRANGE', log, '(' .. seen, '+', 'COUNT', max_news)) do
    local fields = {}
    for i = 1, #entry[2], 2 do fields[entry[2][i]] = entry[2][i + 1] end
    upto = entry[1]
    if fields.r ~= router then
      local said_ms = numbers(upto)
      news[#news + 1] = {fields.r, now_ms - said_ms, fields.b}
      for mark in string.gmatch(fields.m, '[^\\n]+') do taken[mark] = true end
    end
  end
end

local behind = is_before(upto, top)
local clash = behind
for mark in string.gmatch(marks, '[^\\n]+') do clash = clash or taken[mark] end
local written = 0
if body ~= '' and not (compare and clash) then
  local oldest = string.format('%.0f-0', now_ms - lease_ms)
  local id = redis.call('XADD', log, 'MINID', oldest, '*', 'r', router, 'm', marks, 'b', body)
  redis.call('XTRIM', log, 'MAXLEN', max_entries)
  redis.call('PEXPIRE', log, ttl_ms)
  if not behind then upto = id end
  written = 1
end
return {written, upto, lost, behind and 1 or 0, news}
"""


def reservations_key(cluster: str) -> str:
    return f"{cluster}:reservations"


@dataclass(frozen=True, slots=True)
class Heard:
    router_id: str
    statement: Statement
    age_s: float  # when the server answered


@dataclass(frozen=True, slots=True)
class Answer:
    written: bool
    upto: bytes  # the reader knows everything up to here
    lost: bool  # the log no longer has what this reader had read: Redis lost its data, or nobody spoke for long
    behind: bool  # there is more to read
    news: list[Heard]  # of other routers, in order


class Log(Protocol):
    """As `ReservationLog`."""

    async def exchange(
        self, seen: bytes, statement: Statement | None, marks: Collection[str], *, compare: bool
    ) -> Answer: ...


class ReservationLog:
    """One router's access to its cluster's log."""

    def __init__(self, redis: Redis, cluster: str, router_id: str) -> None:
        self._script = redis.register_script(_SCRIPT)
        self._key = reservations_key(cluster)
        self._router_id = router_id

    async def exchange(
        self, seen: bytes, statement: Statement | None, marks: Collection[str], *, compare: bool
    ) -> Answer:
        """Read on from `seen`, and append a statement in the same step.

        Args:
            compare: only if no other router's entry after `seen` bears one of the marks; else in any case.

        What this version cannot read is left out.

        Raises:
            RedisError, OSError: it is not known whether it was written.
        """
        body = b"" if statement is None else _encode(statement)
        limits = (int(LEASE_S * 1e3), MAX_ENTRIES, MAX_NEWS, LOG_TTL_MS)
        args = (seen, self._router_id, body, "\n".join(marks), int(compare), *limits)
        answer: Any = await self._script(keys=[self._key], args=args)
        written, upto, lost, behind, news = answer
        return Answer(
            bool(written),
            upto,
            bool(lost),
            bool(behind),
            [heard for name, age_ms, said in news if (heard := _heard(name, age_ms, said))],
        )


def _heard(router_id: bytes, age_ms: int, said: bytes) -> Heard | None:
    try:
        return Heard(router_id.decode(), _decode(said), max(0, age_ms) / 1e3)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        log.warning("a router's statement cannot be read, perhaps of another version: %s", error)
        return None


REASONS = ("timeout", "unreachable", "out_of_memory", "read_only", "error")


def reason_of(error: BaseException) -> str:
    """One of `REASONS`."""
    if isinstance(error, TimeoutError | RedisTimeoutError):
        return "timeout"
    if isinstance(error, OutOfMemoryError) or (isinstance(error, RedisError) and "OOM" in str(error)):
        return "out_of_memory"
    if isinstance(error, ReadOnlyError) or (isinstance(error, RedisError) and "READONLY" in str(error)):
        return "read_only"
    return "unreachable" if isinstance(error, RedisConnectionError | OSError) else "error"
