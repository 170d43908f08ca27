"""The few Redis commands the index log uses, in memory, with faults a test asks for. No task ever waits in it.

Streams keep the server's rules: ids rise, XADD refuses others, NOMKSTREAM and MINID. A fault is for the next round
trip: "before" (nothing is done) or "after" (all is done, the answer is lost), both raising ConnectionError. It knows no
transactions that fail in the middle, no times to live and no memory; the contract suite runs on real servers.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import Any

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ReadOnlyError, ResponseError

StreamId = tuple[int, int]
Entry = tuple[StreamId, dict[bytes, bytes]]


def parse(text: str | bytes) -> StreamId:
    left, _, right = (text.decode() if isinstance(text, bytes) else text).partition("-")
    return int(left), int(right)


def show(at: StreamId) -> bytes:
    return b"%d-%d" % at


class FakeRedis:
    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self.streams: dict[str, list[Entry]] = {}
        self.tops: dict[str, StreamId] = {}  # last id a stream has ever had, as the server remembers it
        self.fault = ""
        self.read_only = False
        self.round_trips = 0

    def flushall(self) -> None:
        self.values.clear()
        self.streams.clear()
        self.tops.clear()

    def pipeline(self, transaction: bool = True) -> FakePipeline:
        return FakePipeline(self)

    async def mget(self, keys: list[str]) -> list[bytes | None]:
        [answer] = self.trip([("mget", (keys,), {})])
        return list(answer)

    async def set(self, *args: Any, **options: Any) -> Any:
        [answer] = self.trip([("set", args, options)])
        return answer

    async def xread(self, positions: dict[bytes, str], count: int, block: int | None) -> Any:
        [answer] = self.trip([("xread", (positions, count), {})])
        return answer

    def trip(self, commands: Iterable[tuple[str, tuple[Any, ...], dict[str, Any]]]) -> list[Any]:
        """One round trip with the fault that was asked for."""
        self.round_trips += 1
        fault, self.fault = self.fault, ""
        if fault == "before":
            raise RedisConnectionError("the connection broke before anything was sent")
        answers = [getattr(self, f"_{name}")(*args, **options) for name, args, options in commands]
        if fault == "after":
            raise RedisConnectionError("the connection broke before the answer came")
        return answers

    # --- commands -------------------------------------------------------------------------------------------------

    def _mget(self, keys: list[str]) -> list[bytes | None]:
        return [self.values.get(key) for key in keys]

    def _set(self, key: str, value: bytes, px: int, nx: bool = False) -> Any:
        if self.read_only:
            return ReadOnlyError("You can't write against a read only replica.")
        if nx and key in self.values:
            return None
        self.values[key] = value
        return True

    def _get(self, key: str) -> Any:
        return self.values.get(key)

    def _delete(self, key: str) -> Any:
        return ReadOnlyError("read only") if self.read_only else int(self.values.pop(key, None) is not None)

    def _pexpire(self, key: str, ttl_ms: int) -> Any:
        return ReadOnlyError("read only") if self.read_only else int(key in self.values or key in self.streams)

    def _xrevrange(self, key: str, count: int) -> list[tuple[bytes, dict[bytes, bytes]]]:
        return [(show(at), fields) for at, fields in self.streams.get(key, [])[-count:]]

    def _xadd(self, key: str, fields: dict[bytes, bytes], **options: Any) -> Any:
        if self.read_only:
            return ReadOnlyError("read only")
        if options["nomkstream"] and key not in self.streams:
            return None
        at = parse(options["id"])
        if at <= self.tops.get(key, (0, 0)):
            return ResponseError("The ID specified in XADD is equal or smaller than the target stream top item")
        entries = self.streams.setdefault(key, [])
        entries.append((at, fields))
        self.tops[key] = at
        if options["minid"]:
            entries[:] = [entry for entry in entries if entry[0] >= parse(options["minid"])]
        return show(at)

    def _xread(self, positions: dict[bytes, str], count: int) -> Any:
        answer = []
        for key, position in positions.items():
            later = [entry for entry in self.streams.get(key.decode(), []) if entry[0] > parse(position)]
            if later:
                answer.append([key, [(show(at), fields) for at, fields in later[:count]]])
        return answer


class FakePipeline:
    def __init__(self, redis: FakeRedis) -> None:
        self._redis = redis
        self._commands: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    async def __aenter__(self) -> FakePipeline:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._commands.clear()

    def __getattr__(self, name: str) -> Any:
        def queue(*args: Any, **options: Any) -> FakePipeline:
            self._commands.append((name, args, options))
            return self

        return queue

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        answers = self._redis.trip(self._commands)
        if raise_on_error:
            for answer in answers:
                if isinstance(answer, Exception):
                    raise answer
        return answers
