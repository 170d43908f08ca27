"""Options that `plan` and `falsify` share: what a good request is, and the simulated engine."""

from __future__ import annotations

import math
from dataclasses import dataclass

from cyclopts import Parameter

from loadgen.planner.engines import DEFAULT_TIMING, Engine, engine_of, largest_block, one_way_ms
from loadgen.planner.traffic import Traffic
from loadgen.planner.usage import WrongUsage
from loadgen.sim.metrics import Limits


@dataclass(frozen=True, slots=True)
class Slo:
    ttft_ms: float
    tpot_ms: float
    attainment: float = 0.9  # DistServe's (OSDI'24)

    @property
    def limits(self) -> Limits:
        return Limits(self.ttft_ms, self.tpot_ms)


def parse_slo(text: str) -> Slo:
    """ "ttft_ms=1000,tpot_ms=50", optionally ",attainment=0.95".

    Raises:
        WrongUsage: a name or number is wrong or missing.
    """
    values: dict[str, float] = {}
    for part in filter(None, text.split(",")):
        name, _, number = part.strip().partition("=")
        if name not in Slo.__dataclass_fields__:
            raise WrongUsage(f"--slo knows no {name!r}; it is ttft_ms=…,tpot_ms=… and optionally attainment=0.9")
        values[name] = _above_0(name, number)
    if missing := {"ttft_ms", "tpot_ms"} - values.keys():
        raise WrongUsage(f"--slo lacks {', '.join(sorted(missing))}")
    if values.get("attainment", 1.0) > 1:
        raise WrongUsage("--slo: attainment is a share, at most 1")
    return Slo(**values)


def _above_0(name: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise WrongUsage(f"--slo: {name} is {text!r}, which is no number") from None
    if not 0 < number < math.inf:
        raise WrongUsage(f"--slo: {name} must be above 0")
    return number


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """The simulated engine.

    Parameters
    ----------
    timing
        How long its steps take: fit:MODEL/GPU/TP of our tables, fixed:prefill_ms=…,decode_ms=…, fitted:… or
        measured:FILE, of a running worker.
    block_size
        Tokens in a KV block; 0: the trace's own.
    kv_tokens, kv_bytes_per_token
        KV of one worker. Needed unless the timing is a fit:, where the tables know.
    max_batch_tokens
        Tokens in one step, which is also the longest prefill chunk.
    max_running
        Sequences in one step.
    hop_ms
        Client or router to worker, each way; by default as measured with the timing, else 0.5.
    wire_gb_per_s
        Between two workers; 0: 50, a 400 Gb/s port.
    """

    timing: str = DEFAULT_TIMING
    block_size: int = 0
    kv_tokens: int = 0
    kv_bytes_per_token: int = 0
    max_batch_tokens: int = 8_192
    max_running: int = 256
    hop_ms: float | None = None
    wire_gb_per_s: float = 0.0

    @property
    def one_way_ms(self) -> float:
        """
        Raises:
            ValueError: the file of the timing cannot be used.
        """
        return one_way_ms(self.timing) if self.hop_ms is None else self.hop_ms

    def engine(self, traffic: Traffic) -> Engine:
        """
        Raises:
            WrongUsage: the timing is not known, the KV's size is neither known nor given, or the blocks do not fit the
                trace's.
            OSError: a measured timing cannot be read.
        """
        try:
            return self._engine(traffic)
        except ValueError as error:
            raise WrongUsage(str(error)) from None

    def _engine(self, traffic: Traffic) -> Engine:
        return engine_of(
            self.timing,
            largest_block([each.block_tokens for each in traffic.requests], self.block_size),
            kv_tokens=self.kv_tokens,
            kv_bytes_per_token=self.kv_bytes_per_token,
            max_batch_tokens=self.max_batch_tokens,
            max_running=self.max_running,
            hop_ms=self.one_way_ms,
            wire_gb_per_s=self.wire_gb_per_s,
        )


DEFAULT_ENGINE = EngineOptions()
