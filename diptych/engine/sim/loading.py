"""Makes a simulated engine for a model folder: its shape, its vocabulary and its context are read, weights are not.

The cache holds as many tokens as the engine that is played would have room for. What is kept and moved for each of
them is `cell_bytes`, so that an engine of many GB of KV can be played in a few MB.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from diptych.engine.sim.pace import Pace
from diptych.engine.sim.runner import SimRunner
from diptych.engine.sim.timing import FasterTiming
from diptych.engine.sim.timing_spec import deployment_of, parse_timing
from diptych.model_spec import ModelSpec

MAX_VOCABULARY = 4_096
FIRST_TOKEN = 3  # of a small vocabulary: before it are special tokens, by custom
FIRST_WORD = 300  # of a large one: before it are special tokens and single bytes, by custom


def load_sim_runner(
    spec: ModelSpec,
    *,
    identity: str,
    timing: str,
    speedup: float,
    block_size: int,
    cell_bytes: int,
    model_bytes_per_token: int,
    kv_cache_bytes: int,
    kv_tokens: int = 0,
    dtype: str = "float32",
    on_late: Callable[[float], None] = lambda _: None,
) -> SimRunner:
    """
    Args:
        identity: whose KV it is; runners with another say other things.
        timing: see `timing_spec`.
        speedup: divides all modelled times.
        cell_bytes: memory for a token's KV.
        model_bytes_per_token: KV of a token in the model that is played.
        kv_cache_bytes: of the engine that is played. No more memory than this is used, unless `kv_tokens` asks for it.
        kv_tokens: tokens that the cache holds; 0: what fits into `kv_cache_bytes` of the model's KV, or with timing
            from the tables what fits into that GPU.
        on_late: see `Pace`.

    Raises:
        ValueError: the timing model is not known, or not even one block fits.
    """
    deployment = deployment_of(timing)
    room = deployment.kv_tokens if deployment else kv_cache_bytes // model_bytes_per_token
    tokens = kv_tokens or min(room, kv_cache_bytes // cell_bytes)
    return SimRunner(
        kv_cache_bytes=tokens // block_size * block_size * cell_bytes,
        block_size=block_size,
        fingerprint=identity,
        vocabulary=vocabulary_of(spec),
        pace=Pace(FasterTiming(parse_timing(timing), speedup), on_late),
        cell_bytes=cell_bytes,
        dtype=dtype,
    )


def vocabulary_of(spec: ModelSpec) -> Sequence[int]:
    """Tokens that a simulated engine draws: plain ones, as far as ids tell, and none that ends a text."""
    first = FIRST_WORD if spec.vocab_size > 2 * FIRST_WORD else FIRST_TOKEN
    ids = range(first, min(spec.vocab_size, first + MAX_VOCABULARY))
    return tuple(token for token in ids if token not in spec.eos_token_ids)
