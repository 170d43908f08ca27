"""What the router's core needs of its configuration and its model."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    block_size: int  # tokens
    block_bytes: int
    max_context: int  # tokens
    fingerprint: str
    remote_prefill: str
    reserve_timeout_ms: int
    max_attempts: int

    def num_blocks(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)
