"""How long one engine step would take, from its shape alone.

    FixedTiming    a step with a prompt in it takes one constant, any other step another one
    FittedTiming   polynomials of prompt tokens, batch size and context, fitted to measured kernels
    FasterTiming   another one, so many times as fast

Knows nothing about clocks, plans' contents or sleeping: given a shape, says milliseconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from diptych.engine.interface import Row


@dataclass(frozen=True, slots=True)
class StepShape:
    """What of a step decides its duration."""

    chunks: tuple[tuple[int, int], ...]  # of each row of a prompt: position of its first token, tokens
    num_decodes: int  # rows that go on with a completion
    context_tokens: int  # KV that these read, over all of them


class TimingModel(Protocol):
    def step_ms(self, shape: StepShape) -> float:
        """Duration of a step that computes at least one token."""
        ...

    def decode_run_ms(self, num_decodes: int, context_tokens: int, num_steps: int) -> list[float]:
        """Durations of steps in a row that only decode; `context_tokens` is the first one's, each adds a token a row.

        Equal, to the bit, to `step_ms` of each of them.
        """
        ...


@dataclass(frozen=True, slots=True)
class FixedTiming:
    """A step that computes prompt tokens takes `prefill_ms` and `prefill_us_per_token`, any other `decode_ms`.

    Completions in a step with a prompt advance at no extra cost, however many there are.
    """

    prefill_ms: float
    decode_ms: float
    prefill_us_per_token: float = 0.0

    def __post_init__(self) -> None:
        if min(self.prefill_ms, self.decode_ms) <= 0 or self.prefill_us_per_token < 0:
            raise ValueError("prefill_ms and decode_ms must be above 0, prefill_us_per_token must not be below")

    def step_ms(self, shape: StepShape) -> float:
        if not shape.chunks:
            return self.decode_ms
        return self.prefill_ms + self.prefill_us_per_token * sum(count for _, count in shape.chunks) / 1e3

    def decode_run_ms(self, num_decodes: int, context_tokens: int, num_steps: int) -> list[float]:
        return [self.decode_ms] * num_steps


@dataclass(frozen=True, slots=True)
class FittedTiming:
    """Closed forms, fitted for one model, GPU and degree of tensor parallelism.

        prompt alone, n tokens     c0 + c1 n + c2 n²
        decode alone               d0 + d1 rows + d2 context
        both in one step           max(c0, d0) + c1 n + c2 ((s+n)² - s²) + d1 rows + d2 context
        and in every step          what the host adds to the kernels: h0 + h1 rows

    A chunk of n tokens at position s costs what its part of the whole prompt would. The constants are mostly the
    weights' one pass through the GPU, which rows of both kinds share: against measured mixed steps of Llama-3.1-8B
    and -70B on H100 (72 shapes) the maximum is off by 7 % on average and 21 % at worst, their sum by 18 % and 85 %.
    """

    prefill_c0_ms: float
    prefill_c1_ms_per_token: float
    prefill_c2_ms_per_token2: float
    decode_c0_ms: float
    decode_c1_ms_per_row: float
    decode_c2_ms_per_token: float
    host_ms_per_step: float = 0.0
    host_ms_per_row: float = 0.0  # that decodes

    def step_ms(self, shape: StepShape) -> float:
        rows, context = shape.num_decodes, shape.context_tokens
        if not shape.chunks:
            return self._decode_ms(rows, context)
        base = max(self.prefill_c0_ms, self.decode_c0_ms) if rows else self.prefill_c0_ms
        tokens = sum(count for _, count in shape.chunks)
        squares = sum((start + count) ** 2 - start**2 for start, count in shape.chunks)
        prompts = self.prefill_c1_ms_per_token * tokens + self.prefill_c2_ms_per_token2 * squares
        decodes = self.decode_c1_ms_per_row * rows + self.decode_c2_ms_per_token * context
        return base + prompts + decodes + self._host_ms(rows)

    def decode_run_ms(self, num_decodes: int, context_tokens: int, num_steps: int) -> list[float]:
        before = self.decode_c0_ms + self.decode_c1_ms_per_row * num_decodes  # added up in `_decode_ms`'s order
        slope, host = self.decode_c2_ms_per_token, self._host_ms(num_decodes)
        end = context_tokens + num_steps * num_decodes
        return [before + slope * context + host for context in range(context_tokens, end, num_decodes)]

    def _decode_ms(self, rows: int, context: int) -> float:
        kernels = self.decode_c0_ms + self.decode_c1_ms_per_row * rows + self.decode_c2_ms_per_token * context
        return kernels + self._host_ms(rows)

    def _host_ms(self, rows: int) -> float:
        return self.host_ms_per_step + self.host_ms_per_row * rows


@dataclass(frozen=True, slots=True)
class FasterTiming:
    """Another model with all its times divided by `factor`."""

    timing: TimingModel
    factor: float

    def __post_init__(self) -> None:
        if not self.factor > 0:
            raise ValueError(f"the speed-up is {self.factor}; it must be above 0")

    def step_ms(self, shape: StepShape) -> float:
        return self.timing.step_ms(shape) / self.factor

    def decode_run_ms(self, num_decodes: int, context_tokens: int, num_steps: int) -> list[float]:
        return [ms / self.factor for ms in self.timing.decode_run_ms(num_decodes, context_tokens, num_steps)]


def shape_of(rows: Sequence[Row]) -> StepShape:
    """The shape of a plan's rows. A row that only guesses ahead of its completion counts as decoding."""
    chunks: list[tuple[int, int]] = []
    num_decodes = context_tokens = 0
    for row in rows:
        count = len(row.tokens)
        if count - row.num_drafted == 1 and row.draws and row.draws[0].position:
            num_decodes += 1
            context_tokens += row.start + count
        else:
            chunks.append((row.start, count))
    return StepShape(tuple(chunks), num_decodes, context_tokens)
