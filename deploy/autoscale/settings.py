"""What a user may set about autoscaling: the `[autoscale]` table of a cluster's file. Fields are checked when made."""

from __future__ import annotations

import math
from typing import Literal

import msgspec

from deploy.reconcile import Kind

LEARNT_GROWTH = 4.0  # of `down_after_s`: two steps down that were regretted

Mode = Literal["off", "advise", "on"]


class Bounds(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Workers of a pool, whatever the load."""

    min: int = 1
    max: int = 4

    def __post_init__(self) -> None:
        if not 1 <= self.min <= self.max:
            raise ValueError(f"min is {self.min} and max is {self.max}; it takes 1 <= min <= max")

    def clamp(self, count: int) -> int:
        return max(self.min, min(self.max, count))


class AutoscaleSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Off by default. "advise" decides like "on" and only says so."""

    mode: Mode = "off"
    ttft_ms: float = 2_000.0  # limit of the time to first token; prefill workers are for it
    tpot_ms: float = 100.0  # limit of the time per output token; decode workers are for it
    attainment: float = 0.95  # share of the requests whose queueing delay is to leave room for the TTFT limit
    kv_target: float = 0.8  # share of a decode worker's KV blocks that requests may hold; the rest is headroom
    prefill: Bounds = Bounds()
    decode: Bounds = Bounds()
    interval_s: float = 5.0  # between two decisions
    down_after_s: float = 180.0  # for so long fewer workers must have been enough before one leaves
    down_after_most_s: float = 0.0  # to which that may be learnt to grow; 0: four times as long
    start_s: float = 60.0  # that a worker takes until it serves, until that has been measured
    stale_after_s: float = 5.0  # a worker that has been silent for longer is not known
    max_step_up: int = 4  # workers added at once; more only if that many are there already
    margin: float = 0.15  # the load may grow by so much before a pool that shrank would have to grow again

    def bounds(self, kind: Kind) -> Bounds:
        """Of a pool of workers."""
        return self.prefill if kind is Kind.PREFILL else self.decode

    @property
    def longest_down_after_s(self) -> float:
        return self.down_after_most_s or LEARNT_GROWTH * self.down_after_s

    def __post_init__(self) -> None:
        for name in ("ttft_ms", "tpot_ms", "interval_s", "down_after_s", "start_s", "stale_after_s"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ValueError(f"{name} is {getattr(self, name)}; it must be more than 0")
        for name in ("attainment", "kv_target"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be between 0 and 1")
        if not 0 <= self.margin <= 1:
            raise ValueError(f"margin is {self.margin}; it must be from 0 to 1")
        if self.max_step_up < 1:
            raise ValueError(f"max_step_up is {self.max_step_up}; it must be at least 1")
        if self.down_after_s < 2 * self.interval_s:
            raise ValueError("down_after_s must be at least two intervals (interval_s)")
        if self.down_after_most_s and not self.down_after_s <= self.down_after_most_s < math.inf:
            raise ValueError("down_after_most_s must be at least down_after_s, or 0 for four times as long")
