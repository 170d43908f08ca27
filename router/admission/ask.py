"""What admission is told of a request and what it answers, as frozen structs in tokens and milliseconds.

Times are milliseconds of one clock that only the caller knows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from math import inf
from typing import TYPE_CHECKING

from diptych.config import RouterConfig

if TYPE_CHECKING:
    from router.admission.line import Entry


@dataclass(frozen=True, slots=True)
class AdmissionLimits:
    """Attributes: as in `diptych.config.RouterConfig`; `inf` where there is no bound."""

    max_queued: float = inf  # requests that wait
    max_in_flight: float = inf  # requests that were let through and have not ended
    max_worker_queue_ms: float = inf  # prompt work before a request at a worker (see `room.Room`)
    remote_prefill: str = "auto"

    @classmethod
    def of(cls, config: RouterConfig) -> AdmissionLimits:
        return cls(config.max_queued, config.max_in_flight, config.max_worker_queue_ms, config.remote_prefill)


@dataclass(frozen=True, slots=True)
class Ask:
    """One request that wants to be placed."""

    num_prompt_tokens: int
    deadline_ms: float  # when it ends, whatever has come of it
    ttft_limit_ms: float = inf  # from arrival to the first token; beyond that it is of no use
    priority: int = 0  # higher first
    tenant: str = ""  # tenants share by work done, not by requests sent
    held: Mapping[str, int] = field(default_factory=dict)  # tokens of the prompt that a worker is believed to hold
    num_tokens: int = field(init=False)  # to compute, where the most of it is held

    def __post_init__(self) -> None:
        held = max(self.held.values(), default=0)
        object.__setattr__(self, "num_tokens", max(1, self.num_prompt_tokens - held))

    def uncached(self, worker_id: str) -> int:
        """Tokens that this worker would have to compute."""
        return max(1, self.num_prompt_tokens - self.held.get(worker_id, 0))


class Reason(StrEnum):
    """Why a request was refused. A closed set: a label of metrics."""

    QUEUE_FULL = "queue_full"
    SHED = "shed"  # gave its place in a full queue to a request of higher priority
    TTFT_LIMIT = "ttft_limit"
    DEADLINE = "deadline"


@dataclass(frozen=True, slots=True)
class Go:
    """Place it now.

    Attributes:
        alone: by a decode worker alone, because that is sooner than waiting for a prefill worker.
    """

    entry: Entry
    alone: bool = False


@dataclass(frozen=True, slots=True)
class Refuse:
    """It ends here.

    Attributes:
        late: its limit has passed while it waited; otherwise it cannot be kept any more.
        expected_ms: from now to its first token, had it been let wait; or, if its turn had come, been placed.
        retry_after_ms: when the queue will have drained so far that it would not be refused, if nobody else came.
    """

    entry: Entry
    reason: Reason
    expected_ms: float
    retry_after_ms: float
    late: bool = False


Decision = Go | Refuse
