"""What can be asked: two arms that differ in one thing and use the same workers."""

from __future__ import annotations

from typing import Literal

import msgspec

from loadgen.experiment.shape import Shape

Question = Literal["disaggregation", "cache-aware"]


class Arm(msgspec.Struct, frozen=True, kw_only=True):
    """One side. Every worker of both sides has the same cores, memory and chunk size."""

    name: str
    prefill: int
    decode: int
    policy: str
    max_batch_tokens: int
    remote_prefill: str = "auto"

    @property
    def shape(self) -> Shape:
        return Shape(
            prefill=self.prefill,
            decode=self.decode,
            policy=self.policy,
            remote_prefill=self.remote_prefill,
            max_batch_tokens=self.max_batch_tokens,
        )


def arms(question: Question, prefill: int, decode: int, max_batch_tokens: int) -> tuple[Arm, Arm]:
    """The arm that is asked about, and the one it has to beat.

    Raises:
        ValueError: so many workers cannot be split, or there are not two to choose from.
    """
    Shape(prefill=prefill, decode=decode, max_batch_tokens=max_batch_tokens)  # says what is wrong with the numbers
    if question == "disaggregation":
        if not prefill:
            raise ValueError("disaggregation needs at least one prefill worker")
        apart = Arm(
            name="disaggregated", prefill=prefill, decode=decode, policy="min-ttft", max_batch_tokens=max_batch_tokens
        )
        together = msgspec.structs.replace(apart, name="colocated", prefill=0, decode=prefill + decode)
        return apart, together
    if prefill + decode < 2 or (prefill and max(prefill, decode) < 2):
        raise ValueError("cache-aware placement needs two workers of a kind to choose from")
    aware = Arm(name="min-ttft", prefill=prefill, decode=decode, policy="min-ttft", max_batch_tokens=max_batch_tokens)
    return aware, msgspec.structs.replace(aware, name="least-load", policy="least-load")


CLAIMS: dict[Question, str] = {
    "disaggregation": "apart, prefill and decode workers serve more requests within the limits than as many "
    "workers that do both in chunks",
    "cache-aware": "placing by estimated time, cached prefixes included, serves more requests within the limits than "
    "placing by load alone",
}
