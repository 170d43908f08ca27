"""Guesses how a sequence goes on, from its own text: prompt lookup, without a second model.

The last few tokens are searched for in what came before them; what followed there is the guess. It is right where a
text repeats itself or copies from its prompt (quoting, editing, code), and mostly wrong elsewhere. Whether it is right
is found out by the step that computes it, so a guess can cost time but never change a token. After a wrong guess the
next one is short, after right ones it is long: elsewhere little is wasted.

    ... the cat sat on the mat . Then the cat ▮          "the cat" was here before: guess "sat on the mat ."

Source: Prompt Lookup Decoding (https://github.com/apoorvumang/prompt-lookup-decoding). Knows nothing about blocks,
budgets or models.
"""

from __future__ import annotations

from array import array

from diptych.engine.limits import Limits
from diptych.engine.sequence import Sequence, finish_reason

_WIDTH = array("I").itemsize  # bytes a token in a history


class NgramDrafter:
    """Searches with `bytes.rfind`: microseconds for thousands of tokens, and no index to keep."""

    def __init__(self, limits: Limits) -> None:
        self.max_tokens = limits.speculative_tokens
        self._lengths = range(limits.speculative_ngram_max, limits.speculative_ngram_min - 1, -1)

    def guess(self, sequence: Sequence, max_tokens: int) -> list[int]:
        """Up to `max_tokens` tokens that may follow a sequence that decodes; empty if its end was not seen before.

        None of them could end the choice: behind such a one nothing would be needed.
        """
        history, tokens = sequence.history, sequence.tokens
        history += array("I", tokens[len(history) // _WIDTH :]).tobytes()
        room = sequence.group.request.sampling.max_tokens - len(sequence.output) - 1  # the last one is drawn, not fed
        count = min(max_tokens, self.max_tokens, sequence.guess_limit, room)
        start = self._continuation(history) if count > 0 else None
        if start is None:
            return []
        guess: list[int] = []
        for i in range(start, start + count):
            token = tokens[i] if i < len(tokens) else guess[i - len(tokens)]  # a cycle goes on into the guess itself
            if finish_reason(token, len(sequence.output) + len(guess), sequence.group.request.sampling):
                break
            guess.append(token)
        return guess

    def _continuation(self, history: bytearray) -> int | None:
        """Where the text goes on after the latest earlier place that reads like its end; longer matches first."""
        for length in self._lengths:
            size = length * _WIDTH
            if size >= len(history):
                continue
            end, ending = len(history) - 1, bytes(history[-size:])
            while (at := history.rfind(ending, 0, end)) >= 0 and at % _WIDTH:
                end = at + size - 1  # it matched across tokens: search before it
            if at >= 0:
                return at // _WIDTH + length
        return None
