"""The pre-registration: everything that could be chosen after seeing figures, chosen before, with a hash over it.

The verdict repeats the hash. Whoever has the trace and the design can run it again and get the same plan.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from loadgen.falsify.questions import CLAIMS, Arm, Question, arms
from loadgen.falsify.rules import ANALYSIS, EFFECT, EXCLUSION, PRIMARY, STOPPING, VOID
from loadgen.planner.usage import WrongUsage
from loadgen.report.intervals import one_request, paired_interval

SCHEMA = "loadgen.falsify.v4"
MIN_BLOCKS, MIN_REQUESTS = 4, 10  # below, an interval says nothing, and a share is too coarse
KEPT_SHARE = 2 / 3  # of the blocks; with fewer there is no verdict
SETTLE_REQUESTS = 2  # a worker, sent and forgotten when an arm's cluster is new
Order = Literal["AB", "BA"]


class Stretch(msgspec.Struct, frozen=True):
    """Consecutive requests of the trace."""

    first: int
    count: int


class Traffic(msgspec.Struct, frozen=True, kw_only=True):
    trace: str  # file name, or the generator
    sha256: str  # of the requests as they were read
    requests_in_trace: int
    rate: float  # requests/s, Poisson; 0: at the recorded times
    speedup: float  # of the recorded times; 1 is the user's own load
    jitter_ms: float
    max_input: int | None  # tokens; longer prompts are cut
    max_output: int | None
    num_cut: int  # requests that are
    warmup_share: float  # of each stretch's time, sent and not measured


class Client(msgspec.Struct, frozen=True, kw_only=True):
    """How requests are put to the server; `lag_limit_ms` decides which runs are left out, `timeout_s` what fails."""

    vocabulary_size: int = 32_000
    timeout_s: float = 600.0
    processes: int = 1
    lag_limit_ms: float = 10.0


class Design(msgspec.Struct, frozen=True, kw_only=True):
    schema: str = SCHEMA
    question: Question
    claim: str
    arms: tuple[Arm, Arm]  # asked about, to beat
    traffic: Traffic
    stretches: tuple[Stretch, ...]  # one for each block
    orders: tuple[Order, ...]  # of the arms, one for each block
    ttft_ms: float
    tpot_ms: float
    minimal_effect: float  # of attainment
    seed: int  # of order and arrivals
    system: str
    options: dict[str, Any]  # of the system, all that it is started or simulated with
    client: Client
    simulated: bool
    program: str | UnsetType = UNSET  # that measures, and that a cluster is started from; designs up to v3 lack it
    model: str | UnsetType = UNSET  # as a running cluster calls it; of others it is in `options`
    settle_requests: int | UnsetType = UNSET
    primary: str = PRIMARY
    effect: str = EFFECT
    stopping: str = STOPPING
    exclusion: str = EXCLUSION
    void: str = VOID
    analysis: str = ANALYSIS

    @property
    def num_blocks(self) -> int:
        return len(self.stretches)

    @property
    def finest(self) -> float:
        """Half of the narrowest interval that so many blocks and requests can give: all differences equal."""
        least = one_request(max(1, int(self.stretches[0].count * (1 - self.traffic.warmup_share))))
        narrowest = paired_interval([0.0] * self.num_blocks, least)
        return narrowest.high if narrowest else math.inf

    @property
    def digest(self) -> str:
        """SHA-256 of the design as JSON with sorted keys."""
        return hashlib.sha256(msgspec.json.encode(self, order="deterministic")).hexdigest()


def make_design(
    question: Question,
    traffic: Traffic,
    *,
    prefill: int,
    decode: int,
    max_batch_tokens: int,
    blocks: int,
    requests: int,
    limits: tuple[float, float],
    minimal_effect: float,
    seed: int,
    system: str,
    simulated: bool,
    options: Mapping[str, Any] | None = None,
    client: Client | None = None,
    program: str = "",
    model: str = "",
) -> Design:
    """
    Args:
        requests: of a block; 0: all that the trace has for each.
        limits: TTFT and TPOT, ms.
        options: of the system; plain data.
        program: that measures; empty: not known.
        model: of a running cluster.

    Raises:
        WrongUsage: a number is out of range.
        ValueError: the trace is too short for so many disjoint stretches.
    """
    if not 0 <= minimal_effect < 1:
        raise WrongUsage("the minimal effect is a share of the requests, at least 0 and below 1")
    if not 0 <= traffic.warmup_share < 1:
        raise WrongUsage("the warm-up is a share of a block, at least 0 and below 1")
    return Design(
        question=question,
        claim=CLAIMS[question],
        arms=_arms(question, prefill, decode, max_batch_tokens),
        traffic=traffic,
        stretches=stretches(traffic.requests_in_trace, blocks, requests),
        orders=orders(blocks, seed),
        ttft_ms=limits[0],
        tpot_ms=limits[1],
        minimal_effect=minimal_effect,
        seed=seed,
        system=system,
        options=dict(options or {}),
        client=client or Client(),
        simulated=simulated,
        program=program,
        model=model or UNSET,
        settle_requests=SETTLE_REQUESTS,
    )


def _arms(question: Question, prefill: int, decode: int, max_batch_tokens: int) -> tuple[Arm, Arm]:
    try:
        return arms(question, prefill, decode, max_batch_tokens)
    except ValueError as error:
        raise WrongUsage(str(error)) from None


def stretches(num_requests: int, blocks: int, each: int) -> tuple[Stretch, ...]:
    """Disjoint stretches, spread evenly over the trace."""
    if blocks < MIN_BLOCKS or blocks % 2:
        raise WrongUsage(f"{blocks} blocks: an even number is needed, at least {MIN_BLOCKS}")
    size = each or num_requests // blocks
    if size < MIN_REQUESTS or size * blocks > num_requests:
        raise ValueError(
            f"{num_requests} requests are too few for {blocks} disjoint stretches of {max(size, MIN_REQUESTS)}; "
            "give fewer --blocks or --requests, or a longer trace"
        )
    room = num_requests - size * blocks
    return tuple(Stretch(block * size + block * room // (blocks - 1), size) for block in range(blocks))


def orders(blocks: int, seed: int) -> tuple[Order, ...]:
    """Two blocks at a time ABBA or BAAB, drawn: a drift over the session falls on both arms alike."""
    rng = Random(seed)
    made: list[Order] = []
    for _ in range(blocks // 2):
        made += rng.choice((("AB", "BA"), ("BA", "AB")))
    return tuple(made)


def write_design(design: Design, path: Path) -> None:
    """For people and machines: the file whose content is hashed, indented, with the hash beside it."""
    content = {"sha256": design.digest, "design": msgspec.to_builtins(design)}
    path.write_bytes(msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n")
