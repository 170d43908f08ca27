"""Loads a model's weights from safetensors, checked tensor by tensor, in the form the forward pass wants them.

Query, key and value projections are fused into one matrix, and so are gate and up: fewer, larger products.
Every tensor the model needs must be there with the right shape, and every tensor in the files must be one the model
knows: a weight that is silently left out gives wrong text.

Knows nothing about how weights are used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from diptych.config import WeightForm
from diptych.engine.kernels.native import Kernels
from diptych.engine.linear import Linear, make_linear
from diptych.engine.weight_forms import Embedding, FullForm, Int8Form, MatrixForm
from diptych.model_folder import ModelFolder, ModelSpec

FLOAT_DTYPES = ("F32", "F16", "BF16", "F64")


@dataclass(frozen=True, slots=True)
class LayerWeights:
    input_norm: Tensor  # [hidden_size]
    qkv: Linear  # hidden_size -> (num_heads + 2 * num_kv_heads) * head_dim
    head_norms: tuple[Tensor, Tensor] | None  # of queries and of keys, each [head_dim]
    output: Linear  # num_heads * head_dim -> hidden_size
    post_attention_norm: Tensor  # [hidden_size]
    gate_up: Linear  # hidden_size -> 2 * intermediate_size, gate first
    down: Linear  # intermediate_size -> hidden_size


@dataclass(frozen=True, slots=True)
class ModelWeights:
    embedding: Embedding  # [vocab_size, hidden_size]
    layers: list[LayerWeights]
    norm: Tensor  # [hidden_size]
    head: Linear  # hidden_size -> vocab_size
    num_bytes: int  # of all matrices, in the form in which they are kept

    @property
    def takes_single_rows(self) -> bool:
        """No linear layer has to compute a single row as two (see `linear.py`)."""
        layers = (linear for layer in self.layers for linear in (layer.qkv, layer.output, layer.gate_up, layer.down))
        return all(getattr(linear, "single", False) for linear in (self.head, *layers))


def load_weights(
    folder: ModelFolder,
    dtype: torch.dtype,
    device: torch.device,
    progress: Callable[[str, float], None] | None = None,
    *,
    form: WeightForm = "full",
    kernels: Kernels | None = None,
) -> ModelWeights:
    """Load all weights as `dtype` on `device`. `progress` is told the stage and the fraction done, 0 to 1.

    Args:
        form: "int8" quantizes every matrix, embedding and head included; norms and biases stay numbers.
        kernels: that compute a few rows, or with quantized matrices; None: torch does.

    Raises:
        ValueError: a tensor is missing, unknown, of the wrong shape or not floating point (names file and tensor); or
            the form is not computed in this dtype on this device.
    """
    spec = folder.spec
    expected = expected_shapes(spec)
    make = _make_form(form, dtype, device, kernels)
    with _Reader(folder, expected, dtype, device) as reader:
        table = reader.read("model.embed_tokens.weight")
        if spec.tie_embeddings:
            embedding, head = make.tied(table)
        else:
            embedding, head = make.embedding(table), make.linear(reader.read("lm_head.weight"), None)
        del table
        layers = []
        for index in range(spec.num_layers):
            if progress:
                progress("loading weights", index / spec.num_layers)
            layers.append(_load_layer(reader, make, f"model.layers.{index}.", expected))
        norm = reader.read("model.norm.weight")
    if progress:
        progress("loading weights", 1.0)
    return ModelWeights(embedding, layers, norm, head, make.num_bytes)


def _make_form(form: WeightForm, dtype: torch.dtype, device: torch.device, kernels: Kernels | None) -> MatrixForm:
    if form == "full":
        return FullForm(partial(make_linear, kernels=kernels))
    if device.type != "cpu" or dtype != torch.float32:
        raise ValueError(f"int8 weights are computed in float32 on CPU only; for {dtype} on {device} use full weights")
    return Int8Form(kernels, torch.get_num_threads())


def expected_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Every tensor the model must have, by its name in the files."""
    hidden, head_dim = spec.hidden_size, spec.head_dim
    query, key = spec.num_heads * head_dim, spec.num_kv_heads * head_dim
    layer: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
    }

    def add(name: str, out_features: int, in_features: int, *, bias: bool) -> None:
        layer[f"{name}.weight"] = (out_features, in_features)
        if bias:
            layer[f"{name}.bias"] = (out_features,)

    for name, out_features in (("q", query), ("k", key), ("v", key)):
        add(f"self_attn.{name}_proj", out_features, hidden, bias=spec.attention_bias)
    add("self_attn.o_proj", hidden, query, bias=spec.output_bias)
    for name in ("gate", "up"):
        add(f"mlp.{name}_proj", spec.intermediate_size, hidden, bias=spec.mlp_bias)
    add("mlp.down_proj", hidden, spec.intermediate_size, bias=spec.mlp_bias)
    if spec.qk_norm:
        layer |= {"self_attn.q_norm.weight": (head_dim,), "self_attn.k_norm.weight": (head_dim,)}

    shapes = {f"model.layers.{i}.{name}": shape for i in range(spec.num_layers) for name, shape in layer.items()}
    shapes |= {"model.embed_tokens.weight": (spec.vocab_size, hidden), "model.norm.weight": (hidden,)}
    if not spec.tie_embeddings:
        shapes["lm_head.weight"] = (spec.vocab_size, hidden)
    return shapes


class _Reader:
    """Reads tensors by name from a folder's memory-mapped files; checks them all against `expected` first."""

    def __init__(
        self, folder: ModelFolder, expected: dict[str, tuple[int, ...]], dtype: torch.dtype, device: torch.device
    ) -> None:
        self._dtype, self._device = dtype, device
        self._file_of = _check(folder, expected)
        self._files = {path: safe_open(path, framework="pt") for path in set(self._file_of.values())}

    def __enter__(self) -> _Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self._files.clear()

    def read(self, name: str) -> Tensor:
        tensor: Tensor = self._files[self._file_of[name]].get_tensor(name)  # type: ignore[no-untyped-call]
        return tensor.to(self._device, self._dtype)

    def stacked(self, names: Iterable[str], expected: dict[str, tuple[int, ...]]) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of one linear layer from the rows of several."""
        names = list(names)
        weight = torch.cat([self.read(f"{name}.weight") for name in names])
        has_bias = f"{names[0]}.bias" in expected
        return weight, torch.cat([self.read(f"{name}.bias") for name in names]) if has_bias else None


def _load_layer(reader: _Reader, make: MatrixForm, prefix: str, expected: dict[str, tuple[int, ...]]) -> LayerWeights:
    def norm(name: str) -> Tensor:
        return reader.read(f"{prefix}{name}.weight")

    def linear(module: str, *names: str) -> Linear:
        return make.linear(*reader.stacked([f"{prefix}{module}.{name}_proj" for name in names], expected))

    has_head_norms = f"{prefix}self_attn.q_norm.weight" in expected
    return LayerWeights(
        input_norm=norm("input_layernorm"),
        qkv=linear("self_attn", "q", "k", "v"),
        head_norms=(norm("self_attn.q_norm"), norm("self_attn.k_norm")) if has_head_norms else None,
        output=linear("self_attn", "o"),
        post_attention_norm=norm("post_attention_layernorm"),
        gate_up=linear("mlp", "gate", "up"),
        down=linear("mlp", "down"),
    )


def _check(folder: ModelFolder, expected: dict[str, tuple[int, ...]]) -> dict[str, Path]:
    """The file that holds each expected tensor."""
    file_of: dict[str, Path] = {}
    for path, header in folder.headers().items():
        for name, tensor in header.tensors.items():
            if name not in expected:
                if _is_redundant(name, folder.spec):
                    continue
                raise ValueError(f"{path}: tensor {name} is not part of the model that config.json describes")
            if tensor.shape != expected[name]:
                raise ValueError(f"{path}: tensor {name} is {tensor.shape}; config.json asks for {expected[name]}")
            if tensor.dtype not in FLOAT_DTYPES:
                raise ValueError(
                    f"{path}: tensor {name} is {tensor.dtype}; only {', '.join(FLOAT_DTYPES)} can be loaded"
                )
            file_of[name] = path

    missing = sorted(expected.keys() - file_of.keys())
    if missing:
        raise ValueError(f"{folder.path}: tensor {missing[0]} is missing ({len(missing)} of {len(expected)} are)")
    return file_of


def _is_redundant(name: str, spec: ModelSpec) -> bool:
    """Old exports carry rotary tables, and some write the tied head a second time."""
    return name.endswith("rotary_emb.inv_freq") or (name == "lm_head.weight" and spec.tie_embeddings)
