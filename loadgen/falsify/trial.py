"""Runs a design: block by block, both arms on the same requests at the same times, in the order that was drawn.

Whether a run may be used is asked of the generator's account alone. Knows nothing of what runs the cluster
(`loadgen.experiment.run.Backend`).
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import msgspec

from loadgen.arrivals import Arrivals, OpenLoop, Piece, TraceTimes
from loadgen.client.config import RunConfig
from loadgen.experiment.configs import settle_config
from loadgen.experiment.run import Backend
from loadgen.experiment.shape import Misfit, Say, Shape, SystemUnavailable, misfit
from loadgen.falsify.block import Block, Side, side_of
from loadgen.falsify.design import SETTLE_REQUESTS, Design
from loadgen.falsify.progress import Progress
from loadgen.falsify.questions import Arm
from loadgen.report.result import STOPPED, RunResult
from loadgen.traces.request_log import write_request_log
from loadgen.workloads.workload import Workload

ATTEMPTS = 2  # the design's exclusion rule
REPORT = {"return_report": True}  # Diptych says what each request cost, and where its prompt was computed


class Stopped(Exception):
    """The run under way was stopped; its figures are of no use."""


class Trial:
    """
    Attributes:
        blocks: that are over.
        salt: of this trial's prompts. Drawn, so that a second trial on a cluster that still runs meets no prompt of the
            first in its caches; kept with the results, and no part of the design.
    """

    def __init__(
        self, design: Design, workload: Workload, backend: Backend, folder: Path, say: Say, salt: int | None = None
    ) -> None:
        self.blocks: list[Block] = []
        self.salt = secrets.randbits(63) if salt is None else salt
        self._design = design
        self._workload = workload
        self._backend = backend
        self._folder = folder
        self._say = say
        self._shape: Shape | None = None
        self._target = ("", "")
        self._progress = Progress(design, [self._duration_s(number) for number in range(design.num_blocks)])

    async def run(self) -> None:
        """All blocks.

        Raises:
            SystemUnavailable, ShardFailed: an arm could not be measured, or was not what the design says; there is no
                verdict then.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        for number in range(self._design.num_blocks):
            log = self._write_stretch(number)
            self._say(self._progress.words(number, self._shape))  # no figures: nobody looks
            for attempt in range(1, ATTEMPTS + 1):
                block = await self._block(number, log, attempt)
                if block.valid:
                    break
                why = "; ".join(block.doubts)
                self._say(f"block {number + 1}, attempt {attempt} of {ATTEMPTS}, is of no use: {why}")
            self.blocks.append(block)

    async def _block(self, number: int, log: Path, attempt: int) -> Block:
        order = self._design.orders[number]
        sides: dict[str, Side] = {}
        for letter in order:
            arm = self._design.arms["AB".index(letter)]
            sides[letter] = await self._measure(number, arm, log, attempt)
        return Block(number=number, order=order, first=sides["A"], second=sides["B"], attempts=attempt)

    async def _measure(self, number: int, arm: Arm, log: Path, attempt: int) -> Side:
        config = await self._bring(number, arm, log, attempt)
        stem = f"block-{number + 1:02}-{arm.name}" + ("-again" if attempt > 1 else "")
        records = self._folder / f"{stem}.requests.jsonl"
        self._progress.begins()
        with _void_if_misfit():
            result, _ = await self._backend.measure(config, arm.shape, records)
        self._progress.ran(number)
        (self._folder / f"{stem}.run.json").write_bytes(msgspec.json.encode(result))
        if STOPPED in result.invalid_because:
            raise Stopped
        self._check(arm, result)
        return side_of(result)

    async def _bring(self, number: int, arm: Arm, log: Path, attempt: int) -> RunConfig:
        """The system into the arm's shape, where it is not; what to run there."""
        if arm.shape == self._shape:
            return self._config(number, arm, log, attempt)
        self._shape = None
        self._progress.begins()
        with _void_if_misfit():
            self._target = await self._backend.shape(arm.shape)
        if self._design.model and self._target[1] != self._design.model:
            raise SystemUnavailable(
                f"the trial is void: {self._target[1]} is served, and {self._design.model} was registered"
            )
        self._shape = arm.shape
        config = self._config(number, arm, log, attempt)
        await self._backend.settle(settle_config(config, arm.prefill + arm.decode, SETTLE_REQUESTS))
        self._progress.changed()
        return config

    def _check(self, arm: Arm, result: RunResult) -> None:
        """A router that may choose and never uses a prefill worker is an answer, and no misfit."""
        phases = result.summary.phases
        if why := misfit(arm.shape, phases.remote_share if phases else None):
            raise SystemUnavailable(f"the trial is void: {why}")

    def _config(self, number: int, arm: Arm, log: Path, attempt: int) -> RunConfig:
        design, traffic, client = self._design, self._design.traffic, self._design.client
        base_url, model = self._target
        stretch = design.stretches[number]
        return RunConfig(
            base_url=base_url,
            model=model,
            name=f"block {number + 1}, {arm.name}",
            workload=f"log:{log}",
            arrivals=self._arrivals(),
            num_requests=stretch.count,
            warmup_s=round(traffic.warmup_share * self._duration_s(number), 3),
            seed=design.seed + number,
            salt=_salt(self.salt, number, arm.name, attempt),
            vocabulary_size=client.vocabulary_size,
            max_input=traffic.max_input,
            max_output=traffic.max_output,
            extra_body=REPORT,
            timeout_s=client.timeout_s,
            processes=client.processes,
            lag_limit_ms=client.lag_limit_ms,
            ttft_limit_ms=design.ttft_ms,
            tpot_limit_ms=design.tpot_ms,
        )

    def _arrivals(self) -> Arrivals:
        traffic = self._design.traffic
        if traffic.rate:
            return OpenLoop((Piece(None, traffic.rate, traffic.rate),))
        return TraceTimes(traffic.speedup, traffic.jitter_ms)

    def _duration_s(self, number: int) -> float:
        stretch, traffic = self._design.stretches[number], self._design.traffic
        if traffic.rate:
            return stretch.count / traffic.rate
        first, last = (self._workload.requests[stretch.first + at].arrival_ms for at in (0, stretch.count - 1))
        return (last - first) / traffic.speedup / 1e3

    def _write_stretch(self, number: int) -> Path:
        """The block's requests as a log of their own, from 0 ms on."""
        stretch = self._design.stretches[number]
        part = slice(stretch.first, stretch.first + stretch.count)
        requests, labels = self._workload.requests[part], self._workload.labels[part]
        start_ms = requests[0].arrival_ms
        rebased = [replace(each, arrival_ms=each.arrival_ms - start_ms) for each in requests]
        path = self._folder / f"block-{number + 1:02}.log.jsonl"
        path.write_bytes(b"".join(write_request_log(rebased, labels)))
        return path


@contextmanager
def _void_if_misfit() -> Iterator[None]:
    try:
        yield
    except Misfit as error:
        raise SystemUnavailable(f"the trial is void: {error}") from error


def _salt(salt: int, number: int, arm: str, attempt: int) -> int:
    """31 bits, another one for every run: nothing of an earlier one is in a cache."""
    made = hashlib.blake2b(f"{salt}/{number}/{arm}/{attempt}".encode(), digest_size=4).digest()
    return int.from_bytes(made, "little") >> 1
