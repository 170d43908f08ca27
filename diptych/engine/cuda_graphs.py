"""Decode steps as recorded CUDA graphs: one launch instead of one for every kernel of every layer.

    rows ─► a step of single tokens? ─► smallest bucket that holds it ─► pad, fill its inputs ─► replay
                       └─ no: the caller computes it the usual way

Everything is recorded before the worker serves, so that no request waits for it, and largest first: the buckets share
memory, and what a large one used is enough for a small one.

The rules of recording are in https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs. All but `CudaRecorder`
is tested without a GPU; `CudaRecorder` has never run.

Knows nothing about layers, attention's insides or sampling.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from diptych.engine.attention import PagedAttention
from diptych.engine.decode_buckets import Bucket, choose_bucket, make_buckets, pad_rows
from diptych.engine.interface import Row
from diptych.engine.kv_cache import KVCache

log = logging.getLogger(__name__)

WARM_UPS = 2  # before recording: libraries allocate and choose on first use, which a graph cannot record
TOLERANCE = 0.05  # of the largest hidden state: what other kernels for other shapes may differ by in half precision


class DecodeInputs(Protocol):
    """What attention needs to know of a bucket's step, in memory that stays where it is."""

    def fill(self, rows: Sequence[Row]) -> None:
        """On the host, before each replay. There are exactly as many rows as in the bucket."""
        ...

    def plan(self) -> Any:
        """The plan for `PagedAttention.run`, derived from that memory on the device: may be recorded."""
        ...


@runtime_checkable
class GraphableAttention(PagedAttention, Protocol):
    reads_padding: bool  # a wide block table costs time

    def decode_inputs(self, batch: int, width: int) -> DecodeInputs: ...


class Graph(Protocol):
    def replay(self) -> object: ...


# Calls the function it is given, at least once, and returns what replays its work and where its result will be.
Recorder = Callable[[Callable[[], Tensor]], tuple[Graph, Tensor]]
# tokens, positions (int64 [batch]) and an attention plan to hidden states [batch, hidden_size]
Forward = Callable[[Tensor, Tensor, Any], Tensor]
# Hidden states [num_rows or more, hidden_size] of a step of single tokens, the usual way
Compute = Callable[[Sequence[Row]], Tensor]


class DecodeGraphs:
    """The recorded buckets of one model. Belongs to the thread that runs the model."""

    def __init__(
        self,
        forward: Forward,
        attention: GraphableAttention,
        buckets: Sequence[Bucket],
        cache: KVCache,
        record: Recorder,
    ) -> None:
        """Records all buckets. While that goes on, only the cache's scratch block is written."""
        self._block_size = cache.block_size
        self._scratch_block = cache.scratch_block
        self._recorded: dict[Bucket, _Recorded] = {}
        for bucket in sorted(buckets, reverse=True):
            step = _Step(attention.decode_inputs(bucket.batch, bucket.width), bucket.batch, cache.device)
            step.fill(pad_rows([], bucket.batch, self._scratch_block))
            self._recorded[bucket] = _Recorded(step, *record(partial(step.run, forward)))

    @property
    def buckets(self) -> list[Bucket]:
        return sorted(self._recorded)

    def run(self, rows: Sequence[Row]) -> Tensor | None:
        """Hidden states [num_rows, hidden_size], valid until the next call; None: no bucket holds this step."""
        bucket = choose_bucket(self._recorded, rows, self._block_size)
        return None if bucket is None else self._replay(bucket, rows)

    def largest_difference(self, compute: Compute, num_blocks: int) -> float:
        """Between replaying and computing the usual way, over all buckets, as a fraction of the largest number.

        Writes KV to blocks before `num_blocks`: only while nothing is kept there.
        """
        worst = 0.0
        for bucket in self._recorded:
            blocks = range(min(bucket.batch, num_blocks))
            if self._block_size > 1:  # something for the replay to find in the cache
                compute([Row(-1, [1], 0, [block]) for block in blocks])
            rows = [Row(-1, [block % 2], min(1, self._block_size - 1), [block]) for block in blocks]
            expected = compute(rows)[: len(rows)].clone()
            difference = ((self._replay(bucket, rows) - expected).abs().max() / expected.abs().max()).item()
            worst = max(worst, math.inf if math.isnan(difference) else difference)
        return worst

    def _replay(self, bucket: Bucket, rows: Sequence[Row]) -> Tensor:
        recorded = self._recorded[bucket]
        recorded.step.fill(pad_rows(rows, bucket.batch, self._scratch_block))
        recorded.graph.replay()
        return recorded.hidden[: len(rows)]


class _Step:
    """A bucket's inputs, in memory that stays where it is."""

    def __init__(self, inputs: DecodeInputs, batch: int, device: torch.device) -> None:
        self.inputs = inputs
        self.tokens = torch.zeros(batch, dtype=torch.int64, device=device)
        self.positions = torch.zeros(batch, dtype=torch.int64, device=device)

    def fill(self, rows: Sequence[Row]) -> None:
        self.tokens.copy_(torch.tensor([row.tokens[0] for row in rows]))
        self.positions.copy_(torch.tensor([row.start for row in rows]))
        self.inputs.fill(rows)

    def run(self, forward: Forward) -> Tensor:
        return forward(self.tokens, self.positions, self.inputs.plan())


@dataclass(frozen=True, slots=True)
class _Recorded:
    step: _Step
    graph: Graph
    hidden: Tensor  # [batch, hidden_size]


def record_decode_graphs(
    forward: Forward,
    compute: Compute,
    attention: GraphableAttention,
    cache: KVCache,
    record: Recorder,
    *,
    max_batch: int,
    max_context: int,
) -> DecodeGraphs | None:
    """Graphs for decode steps of up to `max_batch` rows; None, with a line in the log, where there are none to be had:
    recording failed, or a replay gave something else than `compute`. The cache must be empty and have a scratch block.
    """
    began = time.perf_counter()
    max_width = -(-max_context // cache.block_size)
    buckets = make_buckets(max_batch, max_width, cache.block_size, reads_padding=attention.reads_padding)
    try:
        graphs = DecodeGraphs(forward, attention, buckets, cache, record)
        difference = graphs.largest_difference(compute, cache.num_blocks)
    except (
        RuntimeError,
        ValueError,
    ) as error:  # of torch or a kernel library; the same steps can be computed without graphs
        log.warning("decode runs without CUDA graphs, which cannot be recorded here: %s", error)
        return None
    if difference > TOLERANCE:
        log.warning("decode runs without CUDA graphs: a replay is off by %.3g of the largest hidden state", difference)
        return None
    log.info("recorded %d CUDA graphs for decode in %.1f s", len(buckets), time.perf_counter() - began)
    return graphs


class CudaRecorder:
    """A `Recorder` on CUDA. All its graphs share one memory pool, which is sound because they replay one at a time and
    a result is used before the next replay."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, compute: Callable[[], Tensor]) -> tuple[Graph, Tensor]:
        # On the stream that records, because libraries keep handles and workspaces per stream.
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            for _ in range(WARM_UPS):
                compute()
        torch.cuda.current_stream().wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        # "thread_local": what other threads of the process do with CUDA meanwhile (UCX) neither fails nor is recorded.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            hidden = compute()
        return graph, hidden
