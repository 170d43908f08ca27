"""What one engine may do at once, and which requests can never fit into it."""

from __future__ import annotations

from dataclasses import dataclass

from diptych.engine.interface import EngineRequest, Kind
from diptych.errors import PromptTooLong


@dataclass(frozen=True, slots=True)
class Limits:
    max_batch_tokens: int  # tokens one step computes; also the longest prefill chunk
    max_running: int  # sequences that compute at the same time
    block_size: int  # tokens a KV block
    max_context: int  # tokens of prompt and completion together
    speculative_tokens: int = 0  # longest guess for one sequence in one step; 0: no guessing
    speculative_ngram_min: int = 2  # tokens that must match an earlier place for its continuation to be a guess
    speculative_ngram_max: int = 4  # longest match that is looked for first

    def __post_init__(self) -> None:
        for name in ("max_batch_tokens", "max_running", "block_size", "max_context", "speculative_ngram_min"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.speculative_tokens < 0:
            raise ValueError(f"speculative_tokens is {self.speculative_tokens}; it must be at least 0 (off)")
        if self.speculative_ngram_max < self.speculative_ngram_min:
            raise ValueError("speculative_ngram_max must not be below speculative_ngram_min")

    def num_blocks(self, num_tokens: int) -> int:
        """Blocks that hold the KV of so many tokens."""
        return -(-num_tokens // self.block_size)

    def check_fits(self, request: EngineRequest, num_blocks: int) -> None:
        """Refuse what could not finish even with the whole pool to itself.

        The KV of the last token is never computed, so a completion needs one token less than it has.

        Raises:
            PromptTooLong: the prompt and max_tokens exceed the context or the pool.
        """
        prompt, max_tokens = len(request.prompt), request.sampling.max_tokens
        asked = f"the prompt has {prompt} tokens and max_tokens is {max_tokens}, together {prompt + max_tokens}"
        if prompt + max_tokens > self.max_context:
            raise PromptTooLong(f"{asked}; the context holds {self.max_context}. Shorten one", param="max_tokens")
        longest = prompt if request.kind is Kind.PREFILL else prompt + max_tokens - 1
        if self.num_blocks(longest) > num_blocks:
            room = num_blocks * self.block_size
            raise PromptTooLong(f"{asked}; this worker's KV cache holds {room}. Shorten one", param="max_tokens")
