"""Whether a model with quantized weights is still that model: it must predict a fixed text as well, or it is refused.

    perplexity = exp(mean over tokens of -log p(token | tokens before it in its window))

It is taken with the very forward pass that will serve, and compared with that of the full weights on the same text,
which leaves little noise in the ratio; alone, perplexity on one text says nothing about how good a model is. The text
(data/quality_text.txt) was written for this purpose and is under the repository's licence: a story with an explanation,
instructions, dialogue, numbers and a little code, 1,882 of SmolLM2's tokens.

What the full weights reach is kept in the user's cache, one small file per model and text, so that a later start need
not load them. What the quantized weights reach is measured at every start, since the kernels are part of the question.

Knows nothing about how weights are quantized.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from blake3 import blake3
from torch.nn import functional

from diptych.config import WeightForm
from diptych.engine.attention import PagedAttention
from diptych.engine.interface import Row
from diptych.engine.kernels.build import cache_folder
from diptych.engine.kv_cache import KVCache
from diptych.engine.model import Model
from diptych.engine.weights import ModelWeights
from diptych.model_folder import ModelFolder
from diptych.tokenizer import Tokenizer

log = logging.getLogger(__name__)

MAX_PERPLEXITY_RATIO = 1.01  # of quantized to full weights
MAX_TOKENS = 2_048  # of the text; more only where a tokenizer knows few words
WINDOW = 512  # tokens that are predicted from each other
BLOCK_SIZE = 16
LOGIT_ROWS = 64  # whose logits are in memory at once
TEXT = Path(__file__).parent / "data" / "quality_text.txt"
_SCHEME = b"diptych perplexity 1"  # part of a cached figure's name: raise the number with any change of how it is taken


@dataclass(frozen=True, slots=True)
class ModelParts:
    """How a whole model is made from either form of its weights."""

    folder: ModelFolder
    dtype: torch.dtype
    device: torch.device
    load: Callable[[WeightForm], ModelWeights]
    make_attention: Callable[[KVCache], PagedAttention]
    make_model: Callable[[ModelWeights, PagedAttention], Model]


@dataclass(frozen=True, slots=True)
class Quality:
    """Perplexities on the fixed text."""

    quantized: float
    full: float

    @property
    def ratio(self) -> float:
        return self.quantized / self.full


def load_checked(parts: ModelParts, form: WeightForm, cache: Path) -> tuple[ModelWeights, Quality]:
    """Load quantized weights that predict the fixed text about as well as the full ones.

    Takes one pass over the text (about as long as a prompt of 1,900 tokens), and at a model's first start on a machine
    another one with the full weights, which are in memory for as long. `cache`: folder of earlier figures.

    Raises:
        ValueError: they do not, with both perplexities; or the folder cannot be loaded.
    """
    began = time.perf_counter()
    windows = _windows(parts.folder)
    weights = parts.load(form)
    found = Quality(perplexity(parts, weights, windows), _perplexity_of_full(parts, windows, cache))
    log.info(
        "%s weights: perplexity %.4f, full weights %.4f, ratio %.4f of at most %s; loaded and checked in %.1f s",
        form,
        found.quantized,
        found.full,
        found.ratio,
        MAX_PERPLEXITY_RATIO,
        time.perf_counter() - began,
    )
    if not found.ratio <= MAX_PERPLEXITY_RATIO:  # not a number is no quality either
        raise ValueError(
            f"{parts.folder.path}: {form} weights are refused, because they change the model: its perplexity on the "
            f"fixed text is {found.quantized:.4f} and with full weights {found.full:.4f}, {found.ratio:.4f} times as "
            f"much where {MAX_PERPLEXITY_RATIO} (MAX_PERPLEXITY_RATIO) is the limit. Serve it with weights 'full'"
        )
    return weights, found


def default_cache() -> Path:
    """Of this user, beside the compiled kernels."""
    return cache_folder(os.environ).parent / "quality"


@torch.inference_mode()
def perplexity(parts: ModelParts, weights: ModelWeights, windows: list[list[int]]) -> float:
    """Of all tokens of `windows` but each one's first; infinite where the mean is beyond a float's range."""
    spec = parts.folder.spec
    num_blocks = -(-max(map(len, windows)) // BLOCK_SIZE)
    cache = KVCache(
        capacity_bytes=num_blocks * spec.block_bytes(BLOCK_SIZE, parts.dtype.itemsize),
        num_layers=spec.num_layers,
        num_kv_heads=spec.num_kv_heads,
        block_size=BLOCK_SIZE,
        head_dim=spec.head_dim,
        dtype=parts.dtype,
        device=parts.device,
    )
    attention = parts.make_attention(cache)
    model = parts.make_model(weights, attention)
    total = 0.0
    for tokens in windows:
        plan = attention.plan([Row(0, tokens, 0, range(num_blocks))])
        ids = torch.tensor(tokens, device=parts.device)
        hidden = model.forward(ids, torch.arange(len(tokens), device=parts.device), plan)
        for begin in range(0, len(tokens) - 1, LOGIT_ROWS):
            end = min(begin + LOGIT_ROWS, len(tokens) - 1)
            logits = model.logits(hidden[begin:end].clone())
            total += functional.cross_entropy(logits, ids[begin + 1 : end + 1], reduction="none").double().sum().item()
    try:
        return math.exp(total / sum(len(tokens) - 1 for tokens in windows))
    except OverflowError:
        return math.inf


def _windows(folder: ModelFolder) -> list[list[int]]:
    """The text's tokens, in pieces that each begin as the tokenizer begins a prompt."""
    tokenizer = Tokenizer.from_folder(folder.path)
    begin = tokenizer.encode("", add_special=True)
    size = min(WINDOW, folder.spec.max_context) - len(begin)
    tokens = tokenizer.encode(TEXT.read_text(encoding="utf-8"), add_special=False)[:MAX_TOKENS]
    return [begin + tokens[i : i + size] for i in range(0, len(tokens), size) if len(tokens) - i > 1]


def _perplexity_of_full(parts: ModelParts, windows: list[list[int]], cache: Path) -> float:
    """From the cache, or measured and kept there."""
    file = cache / f"{_key(parts, windows)}.json"
    known = _read(file)
    if known is None:
        known = perplexity(parts, parts.load("full"), windows)
        _write(file, known)
    return known


def _key(parts: ModelParts, windows: list[list[int]]) -> str:
    digest = blake3(_SCHEME)
    digest.update(parts.folder.fingerprint(str(parts.dtype), BLOCK_SIZE).encode())
    digest.update(json.dumps(windows).encode())
    return digest.hexdigest(length=16)


def _read(file: Path) -> float | None:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))["perplexity"]
        return found if isinstance(found, float) and found >= 1 else None
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("%s cannot be read, the full weights are measured again: %s", file, error)
        return None


def _write(file: Path, value: float) -> None:
    """Appears whole, by a rename. A cache that cannot be written costs the next start a few seconds."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        own = file.with_suffix(f".{time.monotonic_ns()}")
        own.write_text(json.dumps({"perplexity": value}) + "\n", encoding="utf-8")
        own.replace(file)
    except OSError as error:
        log.warning("%s cannot be written, the full weights will be measured at every start: %s", file, error)
