"""A cluster's admin door over HTTP: scale the pools, and read what its processes say of themselves.

Only the fields that experiments use are read, so that this knows the door and not the code behind it.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

import httpx
import msgspec

from diptych.trust import trusting
from loadgen.experiment.shape import Say, Shape, SystemUnavailable
from loadgen.experiment.trust import hint

POLL_S = 0.25
REQUEST_TIMEOUT_S = 75.0  # as long as a controller that is being started again may take
SCALE_TIMEOUT_S = 600.0
WORKERS = ("prefill", "decode")


class Stats(msgspec.Struct, frozen=True):
    """A worker's own view: gauges, and totals since it began."""

    num_running: int = 0
    num_waiting: int = 0
    step_tokens: int = 0
    step_budget: int = 0
    blocks_total: int = 0
    blocks_used: int = 0
    prompt_tokens_computed_total: int = 0
    generated_tokens_total: int = 0
    transfer_bytes_total: int = 0
    steps_total: int = 0


class Said(msgspec.Struct, frozen=True):
    worker_id: str = ""
    http_address: str = ""
    admin_address: str = ""
    tls: bool = False  # of a router's doors


class Process(msgspec.Struct, frozen=True):
    kind: str  # prefill, decode or router
    record: Said | None = None
    stats: Stats | None = None


class PoolScaling(msgspec.Struct, frozen=True):
    pinned: bool = False  # somebody has said how many; the load has no say


class Scaling(msgspec.Struct, frozen=True):
    """By load."""

    mode: str = "off"  # only "on" changes pools
    pools: dict[str, PoolScaling] = {}


class Status(msgspec.Struct, frozen=True):
    model: str  # as clients call it
    wanted: dict[str, int]
    processes: list[Process]
    complete: bool
    name: str = ""  # of the cluster
    placeable: dict[str, int] = {}  # workers that every router would use right now
    autoscale: Scaling | None = None

    @property
    def step_budgets(self) -> set[int]:
        """Tokens that a step of its workers may compute; empty if none has said yet."""
        return {each.stats.step_budget for each in self.processes if each.stats and each.stats.step_budget}

    def has(self, counts: dict[str, int]) -> bool:
        """Exactly so many workers run, and every router would use them."""
        same = all(self.wanted.get(kind, 0) == self.placeable.get(kind, 0) == count for kind, count in counts.items())
        return self.complete and same

    def base_url(self, admin_url: str) -> str:
        """Of the first router. One that listens everywhere is on the host of the admin door."""
        said = next((each.record for each in self.processes if each.kind == "router" and each.record), None)
        if said is None or not said.http_address:
            raise SystemUnavailable("no router of the cluster runs; see diptych status")
        host, _, port = said.http_address.rpartition(":")
        host = host.strip("[]")
        host = (urlsplit(admin_url).hostname or host) if host in ("0.0.0.0", "::") else host
        scheme = "https" if said.tls else "http"
        return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


class AdminDoor:
    """Every method raises `SystemUnavailable` for what cannot be had.

    Args:
        trust: in an https door; None: in what the system's authorities signed.
    """

    def __init__(
        self,
        url: str,
        key: str,
        transport: httpx.AsyncBaseTransport | None = None,
        trust: ssl.SSLContext | None = None,
    ) -> None:
        self.url = url
        self._http = httpx.AsyncClient(
            base_url=url,
            headers={"Authorization": f"Bearer {key}"},
            timeout=REQUEST_TIMEOUT_S,
            trust_env=False,
            transport=transport,
            verify=trust or (trusting() if url.startswith("https:") else True),
        )

    async def close(self) -> None:
        await self._http.aclose()

    async def status(self) -> Status:
        answer = await self._request("GET", "/status")
        try:
            return msgspec.json.decode(answer, type=Status)
        except ValueError as error:  # not JSON, of another shape, or not UTF-8
            raise SystemUnavailable(f"{self.url}/status is not what an admin door says: {error}") from None

    async def scale(self, shape: Shape, say: Say, clock: Callable[[], float] = time.monotonic) -> Status:
        """Returns when the pools have these sizes and the routers know it."""
        counts = {"prefill": shape.prefill, "decode": shape.decode}
        await self.ask_scale(counts)
        deadline, said = clock() + SCALE_TIMEOUT_S, ""
        while not (status := await self.status()).has(counts):
            if clock() > deadline:
                raise SystemUnavailable(f"the cluster is not {shape} after {SCALE_TIMEOUT_S:g} s: {status.placeable}")
            there = ", ".join(f"{status.placeable.get(kind, 0)} of {counts[kind]} {kind}" for kind in WORKERS)
            if there != said:
                say(f"scaling to {shape}: {there}")
                said = there
            await asyncio.sleep(POLL_S)
        return status

    async def ask_scale(self, counts: Mapping[str, int | str]) -> None:
        """Returns when the cluster has taken note; "auto" instead of a count lets the load decide."""
        await self._request("POST", "/scale", counts)

    async def _request(self, method: str, path: str, body: Any = None) -> bytes:
        try:
            content = None if body is None else msgspec.json.encode(body)
            answer = await self._http.request(method, path, content=content)
        except httpx.TransportError as error:
            raise SystemUnavailable(f"the admin door at {self.url} cannot be reached: {error}{hint(error)}") from error
        if not answer.is_success:
            raise SystemUnavailable(f"the admin door at {self.url} refused {path}: {_reason(answer)}")
        return answer.content


def _reason(answer: httpx.Response) -> str:
    """The door's own words, if it has any: an error on the wire is (code, message, ...)."""
    try:
        return f"HTTP {answer.status_code}, {msgspec.json.decode(answer.content, type=list[Any])[1]}"
    except (ValueError, IndexError):
        return f"HTTP {answer.status_code}; is it an admin door?"
