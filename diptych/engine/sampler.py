"""Draws tokens from logits: greedy, or seeded sampling that replays identically on any worker.

The random number behind a token depends on (seed, choice, position) alone, so it does not matter which worker draws
it, in which step, or next to whom. One row's parameters cannot reach another row: each draw sees one row.

Order of operations, as in vLLM: logit bias, min_tokens, penalties; temperature 0 takes the largest here; then
temperature, min_p, top_k, top_p. Log-probabilities are those of the model itself (log-softmax of the raw logits before
any of that), which is the convention of OpenAI and vLLM.

Knows nothing about torch: logits are float32 numpy arrays of one row, [vocab_size].
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from diptych.engine.interface import Draw, Drawn
from diptych.errors import InternalError
from diptych.messages import SamplingParams, TokenLogprob

Floats = NDArray[np.float32]


def draw_all(logits: Floats, draws: Sequence[Draw]) -> list[Drawn]:
    """Draw each of a row's tokens from the same `logits`, which are left as they are.

    Raises:
        InternalError: the logits hold a NaN or +inf, so there is no distribution to draw from.
    """
    peak = float(logits.max(initial=-np.inf))
    if not np.isfinite(peak):
        raise InternalError("the model computed logits that are not finite; its weights or KV are damaged")

    logprobs = log_softmax(logits) if any(draw.sampling.logprobs is not None for draw in draws) else None
    drawn = []
    for draw in draws:
        token_id = draw_token(logits, draw)
        drawn.append(Drawn(draw.choice, token_id, _report(logprobs, token_id, draw.sampling.logprobs)))
    return drawn


def draw_token(logits: Floats, draw: Draw) -> int:
    """Draw one token id."""
    params = draw.sampling
    logits = adjust(logits, draw)
    if params.temperature == 0:
        return int(logits.argmax())  # the lowest id of equals

    probabilities = truncate(logits, params)
    cumulative = probabilities.cumsum(dtype=np.float64)
    target = uniform(params.seed, draw.choice, draw.position) * cumulative[-1]
    return int(cumulative.searchsorted(target, side="right"))


def uniform(seed: int, choice: int, position: int) -> float:
    """A number in [0, 1): the first 53 bits of BLAKE3 over the three integers, each as 16 bytes.

    A hash rather than a generator: it has no state to hand over, and any (choice, position) is as cheap as any other.
    """
    key = b"".join(value.to_bytes(16, "little", signed=True) for value in (seed, choice, position))
    return (int.from_bytes(blake3(key).digest(length=8), "little") >> 11) / (1 << 53)


def adjust(logits: Floats, draw: Draw) -> Floats:
    """Apply logit bias, min_tokens and the penalties; returns `logits` itself when there is nothing to apply."""
    params = draw.sampling
    too_early = bool(params.stop_token_ids) and draw.position < params.min_tokens
    penalised = params.repetition_penalty != 1 or params.frequency_penalty != 0 or params.presence_penalty != 0
    if not (params.logit_bias or too_early or penalised):
        return logits

    logits = logits.copy()
    for token_id, bias in params.logit_bias.items():
        logits[token_id] += bias
    if too_early:
        logits[list(params.stop_token_ids)] = -np.inf
    if penalised:
        _penalise(logits, draw)
    return logits


def truncate(logits: Floats, params: SamplingParams) -> Floats:
    """Unnormalised probabilities after temperature, min_p, top_k and top_p; the most likely token always stays."""
    # From the peak down, so that no temperature can overflow; what underflows is 0 and cannot be drawn.
    probabilities: Floats = np.exp((logits - logits.max()) / np.float32(max(params.temperature, 1e-6)))
    if params.min_p > 0:
        probabilities[probabilities < params.min_p] = 0  # relative to the most likely token, whose value is 1
    if 0 < params.top_k < len(probabilities):
        _keep(probabilities, _largest(probabilities, params.top_k))
    if params.top_p < 1:
        _keep(probabilities, _nucleus(probabilities, params.top_p))
    return probabilities


def log_softmax(logits: Floats) -> NDArray[np.float64]:
    """Natural-log probabilities of the raw logits, in float64."""
    shifted = logits.astype(np.float64) - logits.max()
    logprobs: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum())
    return logprobs


def _penalise(logits: Floats, draw: Draw) -> None:
    """Repetition over prompt and output (https://arxiv.org/abs/1909.05858); frequency and presence over output only."""
    params = draw.sampling
    if params.repetition_penalty != 1:
        seen = np.unique(np.array([*draw.prompt, *draw.output], dtype=np.int64))
        values = logits[seen]
        penalty = np.float32(params.repetition_penalty)
        logits[seen] = np.where(values > 0, values / penalty, values * penalty)
    if draw.output:
        tokens, counts = np.unique(np.array(draw.output, dtype=np.int64), return_counts=True)
        logits[tokens] -= (params.frequency_penalty * counts + params.presence_penalty).astype(np.float32)


def _nucleus(probabilities: Floats, top_p: float) -> NDArray[np.intp]:
    """The fewest tokens, most likely first, whose probabilities reach `top_p`."""
    total = probabilities.sum(dtype=np.float64)
    # Tokens below this line together have less than 1 - top_p, so the nucleus ends above it; the rest needs no sorting.
    line = (1 - top_p) * total / len(probabilities)
    ranked = _ranked(probabilities, np.flatnonzero(probabilities >= min(line, float(probabilities.max()))))
    reached = int(probabilities[ranked].cumsum(dtype=np.float64).searchsorted(top_p * total))
    return ranked[: reached + 1]


def _largest(values: NDArray[np.floating], count: int) -> NDArray[np.intp]:
    """Ids of the `count` largest values, largest first; of equals the lowest id."""
    if count == 0:
        return np.empty(0, dtype=np.intp)
    line = np.partition(values, -count)[-count]
    return _ranked(values, np.flatnonzero(values >= line))[:count]


def _ranked(values: NDArray[np.floating], ids: NDArray[np.intp]) -> NDArray[np.intp]:
    return ids[np.argsort(-values[ids], kind="stable")]


def _keep(probabilities: Floats, ids: NDArray[np.intp]) -> None:
    kept = probabilities[ids]
    probabilities[:] = 0
    probabilities[ids] = kept


def _report(logprobs: NDArray[np.float64] | None, token_id: int, num_top: int | None) -> TokenLogprob | None:
    if logprobs is None or num_top is None:
        return None
    top = _largest(logprobs, min(num_top, len(logprobs)))
    return TokenLogprob(token_id, float(logprobs[token_id]), [(int(id_), float(logprobs[id_])) for id_ in top])
