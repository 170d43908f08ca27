"""From the blocks' differences to a verdict. Pure.

A block is the unit: both arms got the same requests at the same times in it, and its requests waited in one queue, so
they are no independent samples, and blocks nearly are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from math import ceil

import msgspec

from loadgen.falsify.design import KEPT_SHARE, MIN_BLOCKS, Design
from loadgen.sim.intervals import Interval, interval


class Answer(Enum):
    PAYS = "pays"
    DOES_NOT_PAY = "does not pay"
    CANNOT_TELL = "cannot tell"


EXIT_STATUS = {Answer.PAYS: 0, Answer.DOES_NOT_PAY: 10, Answer.CANNOT_TELL: 11}


class Side(msgspec.Struct, frozen=True, kw_only=True):
    """One run of one arm."""

    measured: int  # requests
    failed: int
    attainment: float
    ttft_mean_ms: float | None
    ttft_p90_ms: float | None
    tpot_mean_ms: float | None
    hit_rate: float | None
    invalid_because: list[str] = []
    simulated: bool | None = None  # no model computed, as the server says; None: not known


class Block(msgspec.Struct, frozen=True, kw_only=True):
    number: int
    order: str
    first: Side  # of the arm that is asked about, whichever ran first
    second: Side
    attempts: int

    @property
    def valid(self) -> bool:
        return not self.doubts

    @property
    def doubts(self) -> list[str]:
        """By the generator's own account, of both runs; each once."""
        return list(dict.fromkeys([*self.first.invalid_because, *self.second.invalid_because]))

    @property
    def difference(self) -> float:
        return self.first.attainment - self.second.attainment


class Secondary(msgspec.Struct, frozen=True, kw_only=True):
    """Told, and no part of the verdict: means of both arms, and the mean difference with its interval."""

    name: str
    first: float
    second: float
    difference: Interval


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    answer: Answer
    why: str
    effect: Interval | None  # None with fewer than two blocks
    blocks_used: int
    blocks_left_out: int
    secondary: list[Secondary]


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
    effect = interval([block.difference for block in used]) if len(used) > 1 else None
    answer, why = _answer(design, used, effect, stopped or len(blocks) < design.num_blocks)
    return Verdict(
        answer=answer,
        why=why,
        effect=effect,
        blocks_used=len(used),
        blocks_left_out=len(blocks) - len(used),
        secondary=_secondary(used) if len(used) > 1 else [],
    )


def _answer(design: Design, used: Sequence[Block], effect: Interval | None, stopped: bool) -> tuple[Answer, str]:
    needed = max(MIN_BLOCKS, ceil(KEPT_SHARE * design.num_blocks))
    if stopped:
        return Answer.CANNOT_TELL, "it was stopped before all blocks were run"
    if effect is None or len(used) < needed:
        return Answer.CANNOT_TELL, f"{len(used)} of {design.num_blocks} blocks can be used, and {needed} are needed"
    least = design.minimal_effect
    if effect.low >= least and effect.mean > 0:
        return Answer.PAYS, f"the whole interval is at or above the minimal effect of {_points(least)}"
    if effect.high < least or effect.low == effect.high == 0:
        return Answer.DOES_NOT_PAY, f"the whole interval is below the minimal effect of {_points(least)}" + _ceiling(
            used
        )
    return Answer.CANNOT_TELL, (
        f"the interval has the minimal effect of {_points(least)} in it; an effect of "
        f"{_points((effect.high - effect.low) / 2)} more or less is what so many blocks can tell apart"
    )


def _ceiling(used: Sequence[Block]) -> str:
    """Where neither arm has room the verdict is about the load as much as about the arms."""
    sides = [side.attainment for block in used for side in (block.first, block.second)]
    if min(sides) == 1.0:
        return "; both arms met the limits always: at this load there was nothing to gain"
    if max(sides) == 0.0:
        return "; neither arm ever met the limits: at this load nothing could be gained"
    return ""


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
