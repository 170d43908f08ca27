"""What an engine measures about its own speed: moving averages over its steps. Given durations, knows no clock."""

from __future__ import annotations

from diptych.engine.interface import StepOutcome

_DECAY = 0.9  # of a step's weight with each later one: the last ten or so matter


class Rates:
    """`prefill_tokens_per_s` is what prompts get out of the steps they share with decoding, weighted by duration: a
    plain mean of rates would let short last chunks make a fast worker look slow.

    `decode_step_ms` is taken from steps that only decode: with a prompt chunk in it a step says more about the chunk.
    """

    def __init__(self) -> None:
        self.decode_step_ms = 0.0  # 0 until measured
        self._prefill_tokens = 0.0
        self._prefill_s = 0.0

    @property
    def prefill_tokens_per_s(self) -> float:
        return self._prefill_tokens / self._prefill_s if self._prefill_s > 0 else 0.0

    def note(self, outcome: StepOutcome, duration_s: float) -> None:
        if outcome.prompt_tokens:
            self._prefill_tokens = self._prefill_tokens * _DECAY + outcome.prompt_tokens
            self._prefill_s = self._prefill_s * _DECAY + duration_s
        elif outcome.decode_rows:
            self.note_decode(duration_s * 1e3)

    def note_decode(self, step_ms: float) -> None:
        """A step that only decoded."""
        before = self.decode_step_ms or step_ms
        self.decode_step_ms = before * _DECAY + step_ms * (1 - _DECAY)
