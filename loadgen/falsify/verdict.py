"""From the blocks' differences to a verdict. Pure.

A block is the unit: both arms got the same requests at the same times in it, and its requests waited in one queue, so
they are no independent samples, and blocks nearly are. A few blocks of a few requests agree by chance, though, and
Student's t over equal differences has no width: it is never taken to be narrower than one request's share makes it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from math import ceil
from statistics import fmean

import msgspec

from loadgen.falsify.block import Block, Side
from loadgen.falsify.design import KEPT_SHARE, MIN_BLOCKS, Design
from loadgen.report.intervals import one_request, paired_interval
from loadgen.sim.intervals import Interval, interval


class Answer(Enum):
    PAYS = "pays"
    DOES_NOT_PAY = "does not pay"
    CANNOT_TELL = "cannot tell"


EXIT_STATUS = {Answer.PAYS: 0, Answer.DOES_NOT_PAY: 10, Answer.CANNOT_TELL: 11}


class Secondary(msgspec.Struct, frozen=True, kw_only=True):
    """Told, and no part of the verdict: means of both arms, and the mean difference with its interval."""

    name: str
    first: float
    second: float
    difference: Interval


class RemotePrefill(msgspec.Struct, frozen=True, kw_only=True):
    """How often the router used the prefill workers of an arm that has some."""

    arm: str
    requests: int
    used: int  # prefilled by one


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    answer: Answer
    why: str
    effect: Interval | None  # None with fewer than two blocks
    blocks_used: int
    blocks_left_out: int
    secondary: list[Secondary]
    remote_prefill: list[RemotePrefill] = []  # empty where the server does not say
    both_failed: bool = False  # no request of either arm met the limits


SECONDARY: dict[str, Callable[[Side], float | None]] = {
    "TTFT mean ms": lambda side: side.ttft_mean_ms,
    "TTFT p90 ms": lambda side: side.ttft_p90_ms,
    "TPOT mean ms": lambda side: side.tpot_mean_ms,
    "cache hits": lambda side: side.hit_rate,
    "failed requests": lambda side: float(side.failed),
}


def judge(design: Design, blocks: Sequence[Block], *, stopped: bool = False) -> Verdict:
    """
    Args:
        blocks: as far as they were run.
        stopped: before all were.
    """
    used = [block for block in blocks if block.valid]
    effect = effect_of(used)
    answer, why = _answer(design, used, effect, stopped or len(blocks) < design.num_blocks)
    return Verdict(
        answer=answer,
        why=why,
        effect=effect,
        blocks_used=len(used),
        blocks_left_out=len(blocks) - len(used),
        secondary=_secondary(used) if len(used) > 1 else [],
        remote_prefill=_remote_prefill(design, used),
        both_failed=bool(used) and max(_attained(used)) == 0,
    )


def effect_of(used: Sequence[Block]) -> Interval | None:
    """The interval of the blocks' differences as the design's `analysis` has it; None with fewer than two blocks."""
    differences = [block.difference for block in used]
    least = one_request(min((side.measured for block in used for side in block.sides), default=0))
    found = paired_interval(differences, least)
    if found is None:
        return None
    return Interval(fmean(differences), max(-1.0, found.low), min(1.0, found.high), len(differences))


def _answer(design: Design, used: Sequence[Block], effect: Interval | None, stopped: bool) -> tuple[Answer, str]:
    needed = max(MIN_BLOCKS, ceil(KEPT_SHARE * design.num_blocks))
    if stopped:
        return Answer.CANNOT_TELL, "it was stopped before all blocks were run"
    if effect is None or len(used) < needed:
        return Answer.CANNOT_TELL, f"{len(used)} of {design.num_blocks} blocks can be used, and {needed} are needed"
    least = design.minimal_effect
    if effect.low >= least and effect.mean > 0:
        return Answer.PAYS, f"the whole interval is at or above the minimal effect of {_points(least)}"
    if effect.high < least:
        why = f"the whole interval is below the minimal effect of {_points(least)}"
        return Answer.DOES_NOT_PAY, why + _ceiling(used)
    return Answer.CANNOT_TELL, (
        f"the interval has the minimal effect of {_points(least)} in it; an effect of "
        f"{_points((effect.high - effect.low) / 2)} more or less is what so many blocks can tell apart"
        f"{_coarse(used, effect)}{_ceiling(used)}"
    )


def _ceiling(used: Sequence[Block]) -> str:
    """Where neither arm has room the verdict is about the load as much as about the arms."""
    attained = _attained(used)
    if min(attained) == 1.0:
        return "; both arms met the limits always: at this load there was nothing to gain"
    if max(attained) == 0.0:
        return (
            "; both arms failed: no request of either met the limits, which speaks for neither of them: lower the load "
            "or widen the limits"
        )
    return ""


def _coarse(used: Sequence[Block], effect: Interval) -> str:
    spread = interval([block.difference for block in used])
    if spread.high - spread.low >= effect.high - effect.low - 1e-9:
        return ""
    return "; they agree more closely than one request more or less would let them: give them more requests"


def _attained(used: Sequence[Block]) -> list[float]:
    return [side.attainment for block in used for side in block.sides]


def _remote_prefill(design: Design, used: Sequence[Block]) -> list[RemotePrefill]:
    found = []
    for arm, sides in zip(design.arms, zip(*(block.sides for block in used), strict=True), strict=False):
        requests, times = sum(side.told for side in sides), sum(side.remote for side in sides)
        if arm.prefill and requests:
            found.append(RemotePrefill(arm=arm.name, requests=requests, used=times))
    return found


def _secondary(used: Sequence[Block]) -> list[Secondary]:
    found = []
    for name, read in SECONDARY.items():
        pairs = [(read(block.first), read(block.second)) for block in used]
        known = [(ours, theirs) for ours, theirs in pairs if ours is not None and theirs is not None]
        if len(known) > 1:
            ours, theirs = (sum(side) / len(known) for side in zip(*known, strict=True))
            apart = interval([one - other for one, other in known])
            found.append(Secondary(name=name, first=ours, second=theirs, difference=apart))
    return found


def _points(share: float) -> str:
    return f"{share * 100:.1f} points"
