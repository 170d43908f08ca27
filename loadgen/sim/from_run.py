"""A timing model from the requests of a measured run, as its clients saw them and its workers accounted for them.

    loadgen run URL … --extra-body '{"return_report": true}' --name mine --out runs/mine
    python -m loadgen timing runs/mine --out mine.json

Every request says how long its prompt was computed, where, and when each of its tokens came. From all of them together
follows what a worker did at any moment: in which stretches it computed which prompts and nothing else, and how many
sequences with how much context it decoded between two tokens. What is left of the time to first token where nobody
waited is the way there and back: client, HTTP, router, gRPC. Contention for processors and memory is in it as the run
had it, so the run should be like what is to be predicted, at half of what the cluster can take or less.

Knows nothing of the cluster but what its answers say.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from diptych.engine.sim.timing import FittedTiming
from diptych.engine.sim.timing_spec import TimingFile, as_text
from loadgen.client.records import Record, read_records
from loadgen.report.result import read_result
from loadgen.sim.lives import (
    Life,
    Spans,
    by_decode_worker,
    decoding_by_worker,
    lives_of,
    prompts_by_worker,
    tokens_of_gaps,
)
from loadgen.sim.measured import solve

RESULT_SUFFIX = ".run.json"
MIN_PROMPTS, MIN_GAPS, MIN_WAYS = 6, 30, 3
HOPS = {True: 3, False: 2}  # one way each, until the first token: with a prefill worker, decode reserves before


@dataclass(frozen=True, slots=True)
class FromRun:
    """
    Attributes:
        hop_ms: one way between a client and a worker, or two workers; None: nobody came when nobody waited.
        num_prompts, num_gaps: stretches of prompts and gaps between tokens that the model rests on.
    """

    timing: FittedTiming
    hop_ms: float | None
    num_prompts: int
    num_gaps: int


@dataclass(frozen=True, slots=True)
class Busy:
    """A stretch in which a worker computed these prompts without a pause."""

    lives: list[Life]
    began: float
    ended: float

    def terms(self, max_batch_tokens: int) -> tuple[float, float, float]:
        """Of `FittedTiming`: every step, every token, and what the context before it adds."""
        tokens = sum(each.cost.computed_tokens for each in self.lives)
        return math.ceil(tokens / max_batch_tokens), tokens, sum(each.squares for each in self.lives)


def timing_of_runs(runs: Sequence[Sequence[Record]], max_batch_tokens: int) -> FromRun:
    """
    Args:
        runs: the records of each.
        max_batch_tokens: of a worker's step: longer prompts were computed in several.

    Raises:
        ValueError: the server said no costs, or too few requests were alone; says what to do.
    """
    prompts, gaps, ways = list[Busy](), list[tuple[float, float, float]](), list[float]()
    for records in runs:
        lives = lives_of(records)
        prompts += _busy_periods(lives)
        gaps += _decode_gaps(lives)
        ways += _ways(lives)
    if len(prompts) < MIN_PROMPTS or len(gaps) < MIN_GAPS:
        raise ValueError(
            f"a worker did nothing but prompts {len(prompts)} times, and {len(gaps)} gaps between tokens had nothing "
            f"but decoding in them; it takes {MIN_PROMPTS} and {MIN_GAPS}. Run for longer, or at a lower rate"
        )
    terms = [each.terms(max_batch_tokens) for each in prompts]
    c0, c1, c2 = solve(terms, [each.ended - each.began for each in prompts])
    d0, d1, d2 = solve([(1.0, rows, context) for rows, context, _ in gaps], [ms for _, _, ms in gaps])
    hop_ms = float(np.median(ways)) if len(ways) >= MIN_WAYS else None
    return FromRun(FittedTiming(c0, c1, c2, d0, d1, d2), hop_ms, len(prompts), len(gaps))


def _busy_periods(lives: Sequence[Life]) -> Iterator[Busy]:
    """All that workers did about prompts alone. Prompts that overlap share steps, so a stretch is taken as a whole:
    to leave it out would leave out the slow ones, which are the likelier to overlap.
    """
    decoding = decoding_by_worker(lives)
    by_worker = defaultdict[str, list[Life]](list)
    for each in lives:
        if each.cost.computed_tokens:
            by_worker[each.prompt_worker].append(each)
    for worker, there in by_worker.items():
        for busy in _merged(sorted(there, key=lambda each: each.began)):
            if not decoding[worker].touching(busy.began, busy.ended):
                yield busy


def _merged(lives: Sequence[Life]) -> Iterator[Busy]:
    """Of one worker, by their beginning."""
    busy: Busy | None = None
    for life in lives:
        if busy is not None and life.began < busy.ended:
            busy = Busy([*busy.lives, life], busy.began, max(busy.ended, life.first))
            continue
        if busy is not None:
            yield busy
        busy = Busy([life], life.began, life.first)
    if busy is not None:
        yield busy


def _decode_gaps(lives: Sequence[Life]) -> list[tuple[float, float, float]]:
    """(sequences, context tokens of all of them, ms) of each gap between tokens in which no prompt was computed there.

    The first gap of a request that came with its KV is left out: the transfer is in it.
    """
    computing, found = prompts_by_worker(lives), []
    for worker, there in by_decode_worker(lives).items():
        begins, ends = np.array([each.first for each in there]), np.array([each.ended for each in there])
        prompts = np.array([float(each.num_prompt_tokens) for each in there])
        tokens = np.array([float(each.record.output_tokens) for each in there])
        pace = tokens / np.maximum(ends - begins, 1e-3)
        for life in there:
            now = life.first
            for number, (gap, num_tokens) in enumerate(
                zip(life.record.itl_ms, tokens_of_gaps(life.record), strict=True)
            ):
                before, now = now, now + gap
                if (number == 0 and life.remote) or computing[worker].touching(before, now):
                    continue
                middle = (before + now) / 2
                active = (begins <= middle) & (middle <= ends)
                context = prompts[active] + pace[active] * (middle - begins[active])
                found.append((float(active.sum()), float(context.sum()), gap / num_tokens))
    return found


def _ways(lives: Sequence[Life]) -> list[float]:
    """One way each of those who came when nobody waited and no worker of theirs was busy."""
    waiting, decoding = Spans([(each.came, each.first) for each in lives]), decoding_by_worker(lives)
    found = []
    for life in lives:
        until = max(life.began, life.came + 1e-3)
        alone = waiting.touching(life.came, until) == 1
        if alone and not decoding[life.cost.decode_worker].touching(life.came, until):
            way_ms = life.began - life.came - life.cost.queue_ms
            found.append(max(0.0, way_ms) / HOPS[life.remote])
    return found


def timing_file_of_runs(path: Path, max_batch_tokens: int, now: str) -> TimingFile:
    """
    Args:
        path: NAME.run.json of `loadgen run`, or a folder of them.
        now: UTC, ISO 8601.

    Raises:
        ValueError: as `timing_of_runs`, or there is no run.
        OSError: one cannot be read.
    """
    files = run_files(path)
    results = [read_result(file) for file in files]
    found = timing_of_runs([read_records(records_of(file)) for file in files], max_batch_tokens)
    source: dict[str, str | int | float] = {"run": path.name, "runs": len(files)}
    return TimingFile(
        timing=as_text(found.timing),
        measured_at=now,
        source=source | {"prompts": found.num_prompts, "gaps": found.num_gaps},
        hop_ms=found.hop_ms,
        runs=[f"{each.config.seed}/{each.config.salt}" for each in results],
    )


def run_files(path: Path) -> list[Path]:
    """
    Raises:
        ValueError: a folder without a run of `loadgen run`.
    """
    files = sorted(path.rglob(f"*{RESULT_SUFFIX}")) if path.is_dir() else [path]
    if not files or not all(file.name.endswith(RESULT_SUFFIX) for file in files):
        raise ValueError(f"{path} is no run: give the URL of a cluster, a NAME{RESULT_SUFFIX}, or a folder of them")
    return files


def records_of(result: Path) -> Path:
    """The requests of a run."""
    return result.with_name(f"{result.name.removesuffix(RESULT_SUFFIX)}.requests.jsonl")
