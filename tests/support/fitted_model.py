"""A tiny model that predicts one text well: the random one, with a head fitted to what its layers make of that text.

A random model predicts so badly that damage to it may even lower its perplexity. This one has something to lose in
every matrix, since the fitted head reads features that all of them have a part in.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.numpy import load_file, save_file
from tiny_model import make_tiny_model

from diptych.engine.attention import TorchPagedAttention
from diptych.engine.interface import Row
from diptych.engine.kv_cache import KVCache
from diptych.engine.model import Model
from diptych.engine.rope import RotaryEmbedding
from diptych.engine.row_ops import TorchRowOps
from diptych.engine.weights import load_weights
from diptych.model_folder import ModelFolder

BLOCK = 16
CPU = torch.device("cpu")


def make_fitted_model(folder: Path, texts: list[list[int]], num_steps: int = 60, **config: Any) -> Path:
    """Write the model into `folder` and return it. `texts`: tokens, each on its own; `config`: as of the tiny model."""
    make_tiny_model(folder, **config)
    features = torch.cat([_features(ModelFolder(folder), tokens)[:-1] for tokens in texts])
    targets = torch.tensor([token for tokens in texts for token in tokens[1:]])
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = _fit(features, targets, len(tensors["lm_head.weight"]), num_steps).numpy()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@torch.inference_mode()
def _features(folder: ModelFolder, tokens: list[int]) -> torch.Tensor:
    """What the head would read: [num_tokens, hidden_size]."""
    spec = folder.spec
    num_blocks = -(-len(tokens) // BLOCK)
    cache = KVCache(
        capacity_bytes=num_blocks * spec.block_bytes(BLOCK, 4),
        num_layers=spec.num_layers,
        num_kv_heads=spec.num_kv_heads,
        block_size=BLOCK,
        head_dim=spec.head_dim,
        dtype=torch.float32,
        device=CPU,
    )
    attention = TorchPagedAttention(cache, spec.num_heads)
    weights = replace(load_weights(folder, torch.float32, CPU), head=lambda rows: rows)
    model = Model(spec, weights, RotaryEmbedding(spec, CPU, torch.float32), attention, TorchRowOps(spec.rms_norm_eps))
    plan = attention.plan([Row(0, tokens, 0, range(num_blocks))])
    return model.logits(model.forward(torch.tensor(tokens), torch.arange(len(tokens)), plan)).clone()


def _fit(features: torch.Tensor, targets: torch.Tensor, vocab_size: int, num_steps: int) -> torch.Tensor:
    features = features.detach().clone()
    head = torch.zeros(vocab_size, features.shape[1], requires_grad=True)
    optimizer = torch.optim.Adam([head], lr=0.05)
    for _ in range(num_steps):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(features @ head.T, targets)
        loss.backward()
        optimizer.step()
    return head.detach()
