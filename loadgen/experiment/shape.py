"""What of a cluster an experiment varies, and what something that can take such shapes looks like."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

Say = Callable[[str], None]


class SystemUnavailable(RuntimeError):
    """The system under test cannot be brought into a shape; the message says why and what to do."""


class Misfit(SystemUnavailable):
    """It runs, and is not what the shape says: what it would measure is another thing under this one's name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """`remote_prefill` and `policy` are the router's, `max_batch_tokens` the longest chunk of every worker."""

    prefill: int
    decode: int
    policy: str = "min-ttft"
    remote_prefill: str = "auto"
    max_batch_tokens: int = 512

    def __post_init__(self) -> None:
        if self.prefill < 0 or self.decode < 1:
            raise ValueError(f"{self.prefill} prefill and {self.decode} decode workers: at least 0 and 1 are needed")
        if self.max_batch_tokens < 1:
            raise ValueError(f"max_batch_tokens is {self.max_batch_tokens}; it must be at least 1")
        if not self.prefill and self.remote_prefill == "always":
            raise ValueError("remote_prefill 'always' without prefill workers serves nothing; use 'auto' or 'never'")

    def __str__(self) -> str:
        return f"{self.prefill}P+{self.decode}D" if self.prefill else f"{self.decode} colocated"

    @property
    def router_remote_prefill(self) -> str:
        """What the router is started with. Without a prefill worker "auto" and "prefer" decide as "never" does (there
        is no pair to weigh), so that a cluster that is scaled to no prefill worker need not be started again."""
        return "auto" if self.remote_prefill == "never" and not self.prefill else self.remote_prefill

    def only_scales(self, other: Shape) -> bool:
        """A cluster that was started in this shape gets to `other` by scaling its pools."""
        told = self.router_remote_prefill
        same_remote = told == other.router_remote_prefill or (not other.prefill and told != "always")
        return same_remote and self.policy == other.policy and self.max_batch_tokens == other.max_batch_tokens


def misfit(shape: Shape, remote_share: float | None) -> str:
    """Why requests that were prefilled so cannot have met this shape; nothing if they can have, or if nobody said.

    Args:
        remote_share: of the requests, prefilled by a worker that does nothing else.
    """
    if remote_share is None:
        return ""
    if remote_share and (not shape.prefill or shape.remote_prefill == "never"):
        return (
            f"{remote_share:.0%} of the requests to {shape} with remote prefill {shape.remote_prefill} were prefilled "
            "remotely: the cluster is not what this run was to measure"
        )
    if not remote_share and shape.prefill and shape.remote_prefill == "always":
        return (
            f"of the requests to {shape} not one was prefilled by a prefill worker: the router was told "
            "something else (remote_prefill); nothing of disaggregation was measured"
        )
    return ""


class System(Protocol):
    @property
    def cluster(self) -> str:
        """The name of one that somebody else started, once it has taken a shape; else empty."""

    async def shape(self, shape: Shape) -> str:
        """Bring the cluster into this shape; returns its HTTP base URL when every router would use every worker.

        Raises:
            SystemUnavailable: it cannot be had.
        """

    async def close(self) -> None:
        """End what this object started."""
