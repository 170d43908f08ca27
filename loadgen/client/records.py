"""One line for each request: what was planned, when things happened, how it ended. Never what was said."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

import msgspec

Phase = Literal["warmup", "measured", "tail"]

REFUSED = ("http_429", "http_503")


class Cost(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a server that disaggregates says a request cost it (Diptych: `return_report`)."""

    prefill_worker: str = ""  # empty: the decode worker computed the prompt
    decode_worker: str = ""
    computed_tokens: int = 0  # of the prompt, where it was computed
    queue_ms: float = 0.0  # there, before
    prefill_ms: float = 0.0  # there
    transfer_bytes: int = 0
    transfer_ms: float = 0.0
    exposed_ms: float = 0.0  # from prefill's last token to KV at decode: what the transfer added


class Record(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Times in milliseconds; `intended_ms` from the start of the run, latencies from `intended_ms`."""

    index: int  # in the plan
    label: str = ""
    phase: Phase = "measured"
    intended_ms: float
    lag_ms: float = 0.0  # from intended to handed to the connection
    ttft_ms: float | None = None  # to the event with the first token
    e2e_ms: float | None = None  # to the last token or the finish reason; to the failure, if it failed
    itl_ms: list[float] = []  # gaps between events with tokens
    event_tokens: list[int] = []  # tokens of each such event, where the server says; else one is assumed
    planned_input: int
    planned_output: int
    prompt_tokens: int | None = None  # as the server counts them
    output_tokens: int = 0  # the server's count; else events with tokens
    tokens_counted: bool = True  # by the server
    cached_tokens: int | None = None
    predicted_cached_tokens: int | None = None  # where the server reports what its router expected
    cost: Cost | None = None  # where the server reports it
    finish_reason: str = ""
    failure: str = ""  # empty: a whole answer. Kinds are listed in `loadgen.client.answer`
    status: int = 0
    retried: bool = False  # sent again on a new connection, because an idle one turned out to be closed

    @property
    def ok(self) -> bool:
        return not self.failure

    @property
    def refused(self) -> bool:
        return self.failure in REFUSED

    @property
    def tpot_ms(self) -> float | None:
        """(e2e - TTFT) / (n - 1); none for an answer of one token, or none, and where it is not known."""
        if self.ttft_ms is None or self.e2e_ms is None or self.output_tokens < 2 or self.is_lump:
            return None
        return (self.e2e_ms - self.ttft_ms) / (self.output_tokens - 1)

    @property
    def is_lump(self) -> bool:
        """It came as one event with several tokens, as far as can be told: nothing says how far they were apart."""
        several = self.output_tokens > 1 or (not self.tokens_counted and self.planned_output > 1)
        return self.ttft_ms is not None and not self.itl_ms and several

    def token_times_ms(self) -> Iterator[tuple[float, int]]:
        """(time from the run's start, tokens) of each event with tokens."""
        if self.ttft_ms is None:
            return
        at = self.intended_ms + self.ttft_ms
        counts = iter(self.event_tokens)
        yield at, next(counts, 1)
        for gap in self.itl_ms:
            at += gap
            yield at, next(counts, 1)


def write_records(path: Path, records: Iterable[Record]) -> None:
    with path.open("wb") as file:
        for record in records:
            file.write(msgspec.json.encode(record) + b"\n")


def read_records(path: Path) -> list[Record]:
    """
    Raises:
        ValueError: a line is no record.
        OSError: the file cannot be read.
    """
    decoder = msgspec.json.Decoder(Record)
    with path.open("rb") as file:
        return [decoder.decode(line) for line in file if line.strip()]
