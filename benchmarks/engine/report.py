"""From measurements to the table and the JSON object.

A share or a ratio is formed inside one round, where both sides met the same neighbours, and then the median over rounds
is taken. Knows nothing about how anything was measured.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from benchmarks.engine.workload import BATCHES, PREFILL_LENGTHS
from diptych.model_spec import ModelSpec

CASES = tuple(f"prefill_{length}" for length in PREFILL_LENGTHS) + tuple(f"decode_b{batch}" for batch in BATCHES)
TARGETS = {  # tokens/s, set on an AVX2 machine before this engine was written: shares and ratios say more
    "prefill_512": 310.0,
    "prefill_2048": 260.0,
    "decode_b1": 30.0,
    "decode_b4": 75.0,
    "decode_b16": 135.0,
    "decode_b32": 160.0,
}


@dataclass(slots=True)
class Round:
    """One turn of everybody. Rates are tokens/s by engine ("ours", or a peer's name) and case."""

    sgemm_flops: float
    gemv_bytes: float
    scheduler_share_b16: float
    rates: dict[str, dict[str, float]] = field(default_factory=dict)


def flops_per_token(spec: ModelSpec, length: int) -> float:
    """Multiply-adds counted twice: matrix products and causal attention of one prompt token, on average over a prompt
    of `length`. The head is left out: only the last token needs it."""
    attention = 4 * spec.num_heads * spec.head_dim * (length + 1) / 2
    return 2 * num_layer_weights(spec) + spec.num_layers * attention


def weight_bytes(spec: ModelSpec) -> float:
    """float32 weights that a decode step reads: all layers and the head."""
    return 4 * (num_layer_weights(spec) + spec.vocab_size * spec.hidden_size)


def num_layer_weights(spec: ModelSpec) -> int:
    query, key = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    attention = spec.hidden_size * (2 * query + 2 * key)
    return spec.num_layers * (attention + 3 * spec.hidden_size * spec.intermediate_size)


def summary(rounds: Sequence[Round], spec: ModelSpec, exact: bool) -> dict[str, object]:
    """The JSON object of `make bench-engine`."""
    ours = [each.rates["ours"] for each in rounds]
    numbers: dict[str, object] = {f"{case}_tok_s": _median(rates[case] for rates in ours) for case in CASES}
    flops, num_bytes = flops_per_token(spec, 512), weight_bytes(spec)
    numbers["prefill_512_share_of_sgemm"] = _median(
        each.rates["ours"]["prefill_512"] * flops / each.sgemm_flops for each in rounds
    )
    numbers["decode_b1_share_of_gemv"] = _median(
        each.rates["ours"]["decode_b1"] * num_bytes / each.gemv_bytes for each in rounds
    )
    numbers["scheduler_share_b16"] = _median(each.scheduler_share_b16 for each in rounds)
    numbers["exact"] = exact
    numbers["sgemm_gflops"] = _median(each.sgemm_flops / 1e9 for each in rounds)
    numbers["gemv_gb_s"] = _median(each.gemv_bytes / 1e9 for each in rounds)
    numbers["rounds"] = len(rounds)
    for peer in sorted(set(rounds[0].rates) - {"ours"}):
        theirs = [each.rates[peer] for each in rounds]
        for case in CASES:
            numbers[f"{peer}_{case}_tok_s"] = _median(rates[case] for rates in theirs)
            pairs = zip(ours, theirs, strict=True)
            numbers[f"ratio_{peer}_{case}"] = _median(own[case] / their[case] for own, their in pairs)
    return numbers


def table(numbers: dict[str, object], peers: Sequence[str]) -> str:
    """For people."""
    rows = [["tok/s", *(case.replace("_", " ") for case in CASES)]]
    for peer in peers:
        rows.append([peer, *(_cell(numbers.get(f"{peer}_{case}_tok_s")) for case in CASES)])
    rows.append(["Diptych", *(_cell(numbers[f"{case}_tok_s"]) for case in CASES)])
    for peer in peers:
        rows.append([f"ratio to {peer}", *(_cell(numbers.get(f"ratio_{peer}_{case}")) for case in CASES)])
    rows.append(["target", *(_cell(TARGETS[case]) for case in CASES)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    lines.append(
        f"prefill 512 does {numbers['prefill_512_share_of_sgemm']} of sgemm ({numbers['sgemm_gflops']} GFLOP/s; target"
        f" 0.68), decode at batch 1 reads {numbers['decode_b1_share_of_gemv']} of gemv ({numbers['gemv_gb_s']} GB/s;"
        f" target 0.58)"
    )
    lines.append(
        f"not arithmetic: {numbers['scheduler_share_b16']} of a step at batch 16 (at most 0.05);"
        f" exact: {numbers['exact']}"
    )
    return "\n".join(lines)


def _median(values: Iterable[float]) -> float:
    return float(f"{statistics.median(values):.4g}")


def _cell(value: object) -> str:
    if not isinstance(value, float):
        return "–"
    return f"{value:.2f}" if value < 10 else f"{value:.0f}"
