"""Fleets for tests of placement: workers with rates that make sums easy to do in one's head."""

from __future__ import annotations

from typing import Any

from diptych.messages import Role
from router.placement import Placement, PromptView, WorkerView, place

PROMPT = PromptView(num_tokens=160, num_blocks=10, block_bytes=16_000)  # 1 kB a token


def worker(name: str, role: Role, **changes: Any) -> WorkerView:
    """1 ms a prompt token; a decode step of 10 ms + 1 ms for each sequence; 1 MB/s, which is 1 ms a token."""
    fields: dict[str, Any] = {
        "matched_tokens": 0,
        "queued_prefill_tokens": 0,
        "num_running": 0,
        "available_blocks": 100,
        "prefill_tokens_per_s": 1_000.0,
        "transfer_bytes_per_s": 1e6 if role is Role.PREFILL else 0.0,
        "decode_base_ms": 10.0 if role is Role.DECODE else 0.0,
        "decode_ms_per_sequence": 1.0 if role is Role.DECODE else 0.0,
    }
    return WorkerView(worker_id=name, role=role, **{**fields, **changes})


def prefill(name: str, **changes: Any) -> WorkerView:
    return worker(name, Role.PREFILL, **changes)


def decode(name: str, **changes: Any) -> WorkerView:
    return worker(name, Role.DECODE, **changes)


def choose(
    *workers: WorkerView, prompt: PromptView = PROMPT, remote: str = "auto", turn: int = 0, **more: Any
) -> Placement:
    return place(prompt, workers, remote, turn, **more)


def pair_of(placement: Placement) -> tuple[str, str]:
    return placement.prefill_id, placement.decode_id
