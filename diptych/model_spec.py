"""What a model's `config.json` says, checked, as frozen dataclasses.

Only architectures whose forward pass the engine has are accepted; every setting that would change that forward pass and
is not implemented is refused by name, because ignoring it would give wrong text with a straight face.

Knows nothing about files, weights or torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

ARCHITECTURES = {
    "LlamaForCausalLM": "llama",  # includes SmolLM2
    "MistralForCausalLM": "mistral",  # without sliding window
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
ROPE_KINDS = ("linear", "llama3", "yarn")


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """How rotary frequencies are stretched; the names are those of `config.json`. Unused fields keep their defaults."""

    kind: str  # one of ROPE_KINDS
    factor: float
    original_max_position: int  # context the model was first trained for, in tokens
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0  # yarn
    attention_factor: float | None = None  # yarn: scale of cos and sin; None: derived from factor
    truncate: bool = True  # yarn: round the correction range to whole dimensions


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """The shape of one decoder-only model of the Llama family."""

    family: str  # llama, mistral, qwen2, qwen3
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    max_context: int  # tokens
    rope_theta: float
    rope_scaling: RopeScaling | None
    rms_norm_eps: float
    tie_embeddings: bool
    attention_bias: bool  # on query, key and value projections
    output_bias: bool  # on the attention's output projection
    mlp_bias: bool
    qk_norm: bool  # RMS norm on each query and key head before rotation
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None

    def block_bytes(self, block_size: int, dtype_bytes: int) -> int:
        """Bytes of one KV block of `block_size` tokens across all layers."""
        return self.num_layers * 2 * self.num_kv_heads * block_size * self.head_dim * dtype_bytes


def parse_spec(config: Mapping[str, Any], generation: Mapping[str, Any]) -> ModelSpec:
    """Read `config.json` and `generation_config.json` (empty when the folder has none).

    Raises:
        ValueError: a field is missing or of the wrong type, or asks for something the engine does not compute.
    """
    family = _family(config)
    _refuse_unsupported(config, family)
    num_heads = _int(config, "num_attention_heads")
    hidden_size = _int(config, "hidden_size")
    num_kv_heads = _int(config, "num_key_value_heads", num_heads)
    if num_heads % num_kv_heads:
        raise ValueError(
            f"num_attention_heads ({num_heads}) must be a multiple of num_key_value_heads ({num_kv_heads})"
        )

    head_dim = _int(config, "head_dim", 128 if family == "qwen3" else hidden_size // num_heads)
    if head_dim % 2:
        raise ValueError(f"head_dim is {head_dim}; rotary embedding needs an even one")

    max_context = _int(config, "max_position_embeddings")
    rope_theta, rope_scaling = _rope(config, max_context)
    return ModelSpec(
        family=family,
        num_layers=_int(config, "num_hidden_layers"),
        hidden_size=hidden_size,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        intermediate_size=_int(config, "intermediate_size"),
        vocab_size=_int(config, "vocab_size"),
        max_context=max_context,
        rope_theta=rope_theta,
        rope_scaling=rope_scaling,
        rms_norm_eps=_number(config, "rms_norm_eps", 1e-6),
        tie_embeddings=bool(config.get("tie_word_embeddings", False)),
        # Qwen2 has biases on q, k, v whatever its config says; the others put them on all four or on none.
        attention_bias=family == "qwen2" or bool(config.get("attention_bias", False)),
        output_bias=family in ("llama", "qwen3") and bool(config.get("attention_bias", False)),
        mlp_bias=family == "llama" and bool(config.get("mlp_bias", False)),
        qk_norm=family == "qwen3",
        eos_token_ids=_token_ids(generation.get("eos_token_id", config.get("eos_token_id"))),
        bos_token_id=next(iter(_token_ids(generation.get("bos_token_id", config.get("bos_token_id")))), None),
    )


def _family(config: Mapping[str, Any]) -> str:
    names = config.get("architectures") or []
    for name in names:
        if name in ARCHITECTURES:
            return ARCHITECTURES[name]

    said = ", ".join(map(str, names)) or "none"
    raise ValueError(f"unsupported architecture ({said}); supported are {', '.join(ARCHITECTURES)}")


def _refuse_unsupported(config: Mapping[str, Any], family: str) -> None:
    if config.get("quantization_config"):
        raise ValueError("quantization_config is set; only unquantized safetensors weights are supported")
    if (act := config.get("hidden_act", "silu")) != "silu":
        raise ValueError(f"hidden_act is {act!r}; only 'silu' is supported")

    kinds = set(config.get("layer_types") or ["full_attention"])
    if _slides(config, family) or kinds != {"full_attention"}:
        raise ValueError("sliding-window attention is not supported; use a model with full attention in every layer")


def _slides(config: Mapping[str, Any], family: str) -> bool:
    if family.startswith("qwen"):  # these carry a window that is off unless use_sliding_window says otherwise
        return bool(config.get("use_sliding_window", False))
    # As in transformers: Mistral has a window unless its config says null.
    window = config.get("sliding_window", 4096 if family == "mistral" else None)
    return window is not None and window < _int(config, "max_position_embeddings")


def _rope(config: Mapping[str, Any], max_context: int) -> tuple[float, RopeScaling | None]:
    # transformers 5 writes rope_parameters; earlier versions rope_theta beside rope_scaling.
    fields = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = _number(fields, "rope_theta", _number(config, "rope_theta", 10_000.0))
    if _number(config, "partial_rotary_factor", _number(fields, "partial_rotary_factor", 1.0)) != 1.0:
        raise ValueError("partial_rotary_factor other than 1 is not supported")

    kind = fields.get("rope_type", fields.get("type", "default"))
    if kind == "default":
        return theta, None
    if kind not in ROPE_KINDS:
        raise ValueError(f"rope type {kind!r} is not supported; supported are default, {', '.join(ROPE_KINDS)}")
    if fields.get("mscale") or fields.get("mscale_all_dim"):
        raise ValueError("yarn with mscale is not supported")

    attention_factor = fields.get("attention_factor")
    return theta, RopeScaling(
        kind=kind,
        factor=_number(fields, "factor"),
        original_max_position=_int(fields, "original_max_position_embeddings", max_context),
        low_freq_factor=_number(fields, "low_freq_factor", 1.0),
        high_freq_factor=_number(fields, "high_freq_factor", 4.0),
        beta_fast=_number(fields, "beta_fast", 32.0),
        beta_slow=_number(fields, "beta_slow", 1.0),
        attention_factor=None if attention_factor is None else float(attention_factor),
        truncate=bool(fields.get("truncate", True)),
    )


def _int(fields: Mapping[str, Any], name: str, default: int | None = None) -> int:
    value = fields.get(name)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} is {value!r}; expected a positive integer")
    return value


def _number(fields: Mapping[str, Any], name: str, default: float | None = None) -> float:
    value = fields.get(name)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name} is {value!r}; expected a number")
    return float(value)


def _token_ids(value: Any) -> tuple[int, ...]:
    ids = () if value is None else (value,) if isinstance(value, int) else tuple(value)
    if not all(isinstance(token, int) and token >= 0 for token in ids):
        raise ValueError(f"bos/eos token ids are {value!r}; expected token ids")
    return ids
