"""Drives a `Runner` by hand: a minimal stand-in for the scheduler, with block tables a test can see and disturb."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from diptych.engine.interface import Draw, Plan, Row, Runner
from diptych.messages import SamplingParams

GREEDY = SamplingParams(max_tokens=1_000, seed=0, temperature=0)


@dataclass
class Driven:
    """One sequence: what is known of it, how much of that has been computed, and where its KV is."""

    prompt: list[int]
    blocks: list[int]
    sampling: SamplingParams = GREEDY
    output: list[int] = field(default_factory=list)
    num_computed: int = 0

    def next_row(self, chunk: int) -> Row:
        """The next at most `chunk` tokens; draws when they reach the end of the known ones."""
        known = self.prompt + self.output
        end = min(self.num_computed + chunk, len(known))
        draws = [Draw(0, len(self.output), self.sampling, self.prompt, self.output)] if end == len(known) else []
        row = Row(id(self), known[self.num_computed : end], self.num_computed, self.blocks, draws)
        self.num_computed = end
        return row


def step(runner: Runner, sequences: Sequence[Driven], chunk: int = 1_000_000) -> None:
    """One plan with one row for each sequence."""
    results = runner.execute(Plan([sequence.next_row(chunk) for sequence in sequences]))
    for sequence, drawn in zip(sequences, results, strict=True):
        sequence.output.extend(one.token_id for one in drawn)


def prefill(runner: Runner, sequence: Driven, chunk: int = 1_000_000) -> None:
    """Compute the prompt; afterwards `output` holds the first token."""
    while not sequence.output:
        step(runner, [sequence], chunk)


def decode(runner: Runner, sequences: Sequence[Driven], num_tokens: int) -> None:
    """Step all sequences together until each has `num_tokens`; those that have leave the batch."""
    while running := [sequence for sequence in sequences if len(sequence.output) < num_tokens]:
        step(runner, running)


def generate(
    runner: Runner, prompt: list[int], blocks: list[int], num_tokens: int, chunk: int = 1_000_000
) -> list[int]:
    """Greedy tokens of one sequence alone."""
    sequence = Driven(prompt, blocks)
    prefill(runner, sequence, chunk)
    decode(runner, [sequence], num_tokens)
    return sequence.output
