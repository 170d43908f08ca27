"""A design, blocks and a backend for tests of `loadgen.falsify`: no cluster, and figures that tests choose."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from loadgen.client.config import RunConfig, ShardReport
from loadgen.client.plan import make_plan
from loadgen.client.records import Cost, Record
from loadgen.experiment.shape import Shape
from loadgen.falsify.block import Block, Side
from loadgen.falsify.design import Design, Traffic, make_design
from loadgen.report.result import RunResult, machine, make_result


def traffic(**changes: Any) -> Traffic:
    base: dict[str, Any] = {
        "trace": "mine.jsonl",
        "sha256": "00",
        "requests_in_trace": 400,
        "rate": 0.0,
        "speedup": 1.0,
        "jitter_ms": 0.0,
        "max_input": None,
        "max_output": None,
        "num_cut": 0,
        "warmup_share": 0.0,
    }
    return Traffic(**{**base, **changes})


def a_design(
    blocks: int = 8, minimal_effect: float = 0.05, question: str = "disaggregation", **of_traffic: Any
) -> Design:
    return make_design(
        question,  # type: ignore[arg-type]
        traffic(**of_traffic),
        prefill=1,
        decode=2,
        max_batch_tokens=256,
        blocks=blocks,
        requests=20,
        limits=(1_000.0, 50.0),
        minimal_effect=minimal_effect,
        seed=1,
        system="a test",
        simulated=False,
    )


def a_side(attainment: float, *, invalid: str = "", measured: int = 200) -> Side:
    return Side(
        measured=measured,
        failed=0,
        attainment=attainment,
        ttft_mean_ms=100.0 / max(attainment, 0.1),
        ttft_p90_ms=None,
        tpot_mean_ms=10.0,
        hit_rate=None,
        invalid_because=[invalid] if invalid else [],
    )


def a_block(number: int, first: float, second: float, *, invalid: str = "", measured: int = 200) -> Block:
    ours, theirs = a_side(first, invalid=invalid, measured=measured), a_side(second, measured=measured)
    return Block(number=number, order="AB", first=ours, second=theirs, attempts=1)


class ScriptedBackend:
    """Answers every request, within the limits or not as `good` says, by (arm's shape, request number of the block);
    prefilled remotely as `remote` says.

    Attributes: calls, in order: ("shape", …), ("settle",), ("measure", shape, config).
    """

    def __init__(
        self,
        good: Callable[[Shape, int], bool],
        late_ms: Callable[[int], float] = lambda call: 0.0,
        *,
        remote: Callable[[Shape], bool] | None = None,
        simulated: bool | None = False,
    ) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.closed = False
        self._good = good
        self._late_ms = late_ms
        self._remote = remote
        self._simulated = simulated
        self._measured = 0

    async def shape(self, shape: Shape) -> tuple[str, str]:
        self.calls.append(("shape", shape))
        return "http://127.0.0.1:1", "model"

    async def settle(self, config: RunConfig) -> None:
        self.calls.append(("settle",))

    async def measure(self, config: RunConfig, shape: Shape, records_path: Path) -> tuple[RunResult, None]:
        self.calls.append(("measure", shape, config))
        self._measured += 1
        plan = make_plan(config)
        records = [
            Record(
                index=each.index,
                intended_ms=each.due_ms,
                lag_ms=self._late_ms(self._measured),
                ttft_ms=1.0 if self._good(shape, each.index) else config.ttft_limit_ms + 1,
                e2e_ms=config.ttft_limit_ms + 2,
                planned_input=each.request.input_length,
                planned_output=1,
                output_tokens=1,
                status=200,
                cost=self._cost(shape),
            )
            for each in plan.requests
        ]
        shard = ShardReport(cpu_share=0.0, loop_lag_ms=[], connections=1)
        result = make_result(config, plan, records, [shard], "2026-01-01T00:00:00+00:00", machine())
        return msgspec.structs.replace(result, simulated=self._simulated), None

    def _cost(self, shape: Shape) -> Cost | None:
        """None: the server does not say."""
        if self._remote is None:
            return None
        return Cost(prefill_worker="p1" if self._remote(shape) else "", decode_worker="d1")

    async def close(self) -> None:
        self.closed = True
