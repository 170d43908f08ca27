"""What the simulator is asked to run, and what became of it."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from hashlib import blake2b
from math import inf

from kv_transfer.hashing import HASH_BYTES
from loadgen.traces.mooncake import TraceRequest


@dataclass(frozen=True, slots=True)
class SimRequest:
    """One request. Without `prompt` its tokens do not matter, and `hash_ids` alone say what it shares with others."""

    number: int  # unique in a run; below 2**31
    arrival_ns: int
    input_length: int  # tokens
    output_length: int  # tokens
    hash_ids: tuple[int, ...] = ()  # one for each full block of `id_tokens`, given all blocks before it
    id_tokens: int = 512
    prompt: tuple[int, ...] | None = None  # token ids, for simulations with content
    priority: int = 0  # in the router's queue; higher first
    tenant: str = ""

    @property
    def request_id(self) -> str:
        return str(self.number)


@dataclass(slots=True)
class Record:
    """How one request fared. Times are in virtual ns from the start, as the client would see them; -1: never."""

    request: SimRequest
    prefill_worker: int = -1  # indices; -1: decode computed the prompt
    decode_worker: int = -1
    predicted_cached: int = 0  # tokens, as placement believed
    cached: int = 0  # tokens, as the worker that computed the prompt found
    first_token_ns: int = -1
    last_token_ns: int = -1  # the latest token so far
    transfer_ns: int = 0  # prompt computed to KV delivered
    finished: bool = False
    error: str = ""
    output: list[int] = field(default_factory=list)  # token ids, for simulations with content

    @property
    def ttft_ms(self) -> float:
        return (self.first_token_ns - self.request.arrival_ns) / 1e6 if self.finished else inf

    @property
    def e2e_ms(self) -> float:
        return (self.last_token_ns - self.request.arrival_ns) / 1e6 if self.finished else inf

    @property
    def tpot_ms(self) -> float:
        """Mean time between tokens; 0 for a completion of one token."""
        if not self.finished:
            return inf
        return (self.last_token_ns - self.first_token_ns) / 1e6 / max(1, self.request.output_length - 1)


def from_trace(number: int, trace: TraceRequest, arrival_ns: int) -> SimRequest:
    """A trace's request; only its full blocks can be shared."""
    return SimRequest(number, arrival_ns, trace.input_length, trace.output_length, trace.full_ids, trace.block_tokens)


class BlockNames:
    """Names for the blocks behind hash ids: a chain hash is all that caches and indexes see of a prompt.

    An id of 512 tokens stands for 512 / block_size of the engine's blocks; they share no name with those of other ids.
    """

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size

    def of(self, request: SimRequest) -> tuple[bytes, ...]:
        """The hashes of the prompt's full blocks, in order.

        Raises:
            ValueError: the engine's block does not divide the trace's.
        """
        parts, rest = divmod(request.id_tokens, self._block_size)
        if rest:
            raise ValueError(
                f"a block of {self._block_size} tokens does not divide the trace's blocks of {request.id_tokens}"
            )
        count = request.input_length // self._block_size
        if not request.hash_ids:  # shares nothing
            return tuple(_name(-1 - request.number, part) for part in range(count))
        if parts == 1:
            return tuple([_name(hash_id, 0) for hash_id in request.hash_ids[:count]])
        names = [_name(hash_id, part) for hash_id in request.hash_ids for part in range(parts)]
        tail = range(len(names), count)  # of a last id that is not full
        return tuple(names[:count]) + tuple(_name(-1 - request.number, part) for part in tail)


def _name(hash_id: int, part: int) -> bytes:
    return blake2b(struct.pack("<qI", hash_id, part), digest_size=HASH_BYTES).digest()
