"""Everything a Redis holds, as bytes, and the ways in which token ids or text would show up in it."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator, Sequence

import msgspec
from redis.asyncio import Redis

WINDOW = 6  # tokens: so many in a row are no accident


async def contents(redis: Redis) -> list[bytes]:
    """All keys, and all that is under them, whatever their types. Not DUMP: that may be compressed."""
    found: list[bytes] = []
    async for key in redis.scan_iter(count=1_000):
        found.append(key)
        kind = (await redis.type(key)).decode()
        if kind == "string":
            found.append(await redis.get(key) or b"")
        elif kind == "stream":
            for _, fields in await redis.xrange(key):
                found += [part for pair in fields.items() for part in pair]
        elif kind == "set":
            found += await redis.smembers(key)
        elif kind == "hash":
            found += [part for pair in (await redis.hgetall(key)).items() for part in pair]
        elif kind == "zset":
            found += await redis.zrange(key, 0, -1)
        elif kind == "list":
            found += await redis.lrange(key, 0, -1)
        elif kind != "none":  # it expired meanwhile
            raise AssertionError(f"{key!r} is a {kind}, which this does not look into")
    return found


def traces(tokens: Sequence[int]) -> Iterator[bytes]:
    """Every run of WINDOW tokens as numbers of two, four and eight bytes, in either order of bytes, and as text."""
    for start in range(len(tokens) - WINDOW + 1):
        run = list(tokens[start : start + WINDOW])
        for code in "HIQ":
            packed = array(code, run)
            yield packed.tobytes()
            packed.byteswap()
            yield packed.tobytes()
        yield json.dumps(run)[1:-1].encode()
        yield msgspec.json.encode(run)[1:-1]
        yield b"".join(map(msgspec.msgpack.encode, run))


def leaks(held: Sequence[bytes], tokens: Sequence[int], texts: Sequence[str] = ()) -> list[bytes]:
    """Which traces of these are in there."""
    everything = b"\0\xff\0".join(held)
    wanted = [*traces(tokens), *(text.encode() for text in texts)]
    return [trace for trace in wanted if trace in everything]
