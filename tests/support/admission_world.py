"""A fleet that admission can be tried on: a token takes a millisecond, nothing moves by itself."""

from __future__ import annotations

from collections import Counter
from typing import Any

from placement_views import decode, prefill

from router.admission.admission import Admission
from router.admission.ask import AdmissionLimits, Ask, Decision, Go, Refuse
from router.admission.line import Entry, Stage
from router.placement import WorkerView

FAR_MS = 1e9
MS_PER_TOKEN = 1.0


class AdmissionWorld:
    """Each request that goes is put on the prefill worker with the least work, and on the emptiest decode worker.

    Attributes: now_ms, moved by tests; going, refused: what has been decided, in that order.
    """

    def __init__(self, num_prefill: int = 1, num_decode: int = 1, *, slots: int = 0, **limits: Any) -> None:
        self.limits = AdmissionLimits(**{"max_worker_queue_ms": 100.0, "remote_prefill": "always", **limits})
        self.prefills = [f"p{i}" for i in range(num_prefill)]
        self.decodes = [f"d{i}" for i in range(num_decode)]
        self.slots = slots
        self.chunk_tokens = 0
        self.now_ms = 0.0
        self.tokens: Counter[str] = Counter()
        self.sequences: Counter[str] = Counter()
        self.where: dict[Entry, tuple[str, str]] = {}
        self.going: list[Entry] = []
        self.alone: set[Entry] = set()  # of them, those that decode computes, or so it was thought
        self.refused: dict[Entry, Refuse] = {}
        self.core = Admission(self.limits, self.views)

    def views(self) -> list[WorkerView]:
        rate = 1e3 / MS_PER_TOKEN
        prefills = [
            prefill(
                name, queued_prefill_tokens=self.tokens[name], prefill_tokens_per_s=rate, chunk_tokens=self.chunk_tokens
            )
            for name in self.prefills
        ]
        decodes = [
            decode(
                name,
                queued_prefill_tokens=self.tokens[name],
                prefill_tokens_per_s=rate,
                num_running=self.sequences[name],
                max_running=self.slots,
                chunk_tokens=self.chunk_tokens,
            )
            for name in self.decodes
        ]
        return [*prefills, *decodes]

    def arrive(self, num_tokens: int = 100, *, deadline_ms: float = FAR_MS, **ask: Any) -> Entry:
        entry, decisions = self.core.arrive(Ask(num_tokens, deadline_ms, **ask), self.now_ms)
        self.take(decisions)
        return entry

    def wake(self) -> None:
        self.take(self.core.wake(self.now_ms))

    def take(self, decisions: list[Decision]) -> None:
        for decision in decisions:
            if isinstance(decision, Go):
                self.going.append(decision.entry)
                if decision.alone:
                    self.alone.add(decision.entry)
            else:
                self.refused[decision.entry] = decision

    def place_all(self) -> None:
        """Those that may go are booked; again and again, as each makes room for the decision about the next."""
        while waiting := [entry for entry in self.going if entry.stage is Stage.GRANTED]:
            for entry in waiting:
                self.place(entry)
            self.wake()

    def place(self, entry: Entry) -> None:
        computing = min(self.prefills or self.decodes, key=lambda name: self.tokens[name])
        to = min(self.decodes, key=lambda name: self.sequences[name])
        self.where[entry] = (computing, to)
        self.tokens[computing] += entry.ask.num_tokens
        self.sequences[to] += 1
        self.core.placed(entry, to, self.now_ms)

    def first_token(self, entry: Entry) -> None:
        self.tokens[self.where[entry][0]] -= entry.ask.num_tokens
        self.core.prefilled(entry, self.now_ms)
        self.wake()

    def end(self, entry: Entry) -> None:
        """However it stands."""
        if entry in self.where:
            if entry.stage is Stage.PLACED:
                self.tokens[self.where[entry][0]] -= entry.ask.num_tokens
            self.sequences[self.where[entry][1]] -= 1
        self.core.leave(entry, self.now_ms)
        self.wake()
