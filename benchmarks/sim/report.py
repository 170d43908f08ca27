"""The simulator's figures as text."""

from __future__ import annotations

from typing import Any

# Column, measure, factor.
COLUMNS = (
    ("TTFT mean ms", "ttft_mean_ms", 1.0),
    ("TTFT p99 ms", "ttft_p99_ms", 1.0),
    ("TPOT ms", "tpot_mean_ms", 1.0),
    ("reuse %", "reuse", 100.0),
    ("predicted %", "predicted_reuse", 100.0),
    ("goodput/s", "goodput_rps", 1.0),
    ("good %", "attainment", 100.0),
    ("balance", "balance_prompt", 1.0),
)


def as_table(numbers: dict[str, Any]) -> str:
    """`numbers` as `benchmarks.sim.__main__` gathers them."""
    lines = [f"replay of {numbers['replay_num_requests']} requests, 8 workers: {_replay_s(numbers):.1f} s", ""]
    lines.append("clients   measured ms/token   simulated     error")
    for each in numbers["interference"]:
        measured, simulated = each["measured_tpot_ms"], each["simulated_tpot_ms"]
        lines.append(f"{each['concurrency']:7}   {measured:17.1f}   {simulated:9.1f}   {each['error']:+7.1%}")
    lines += [f"mean absolute error: {numbers['interference_mape']:.1%}", ""]
    lines.append("round-robin with fixed step times, beside an independent replay:")
    for name, each in numbers["agreement"].items():
        lines.append(f"{name:<14}{each['ours']:12.6g} {each['independent']:12.6g}   {each['error']:+.2%}")
    lines.append("")
    lines += _policies(numbers["results"])
    lines += ["", *_wins(numbers["wins"])]
    if "scale" in numbers:
        lines += ["", "scale: " + "  ".join(f"{name} {value:.6g}" for name, value in numbers["scale"].items())]
    return "\n".join(lines)


def _replay_s(numbers: dict[str, Any]) -> float:
    return float(numbers["replay_12031_s"] or numbers["replay_s"])


def _policies(results: list[dict[str, Any]]) -> list[str]:
    lines = [f"{'trace':<14}{'fleet':<7}{'policy':<13}" + "".join(f"  {title:>19}" for title, _, _ in COLUMNS)]
    for each in results:
        cells = "".join(f"  {_cell(each[measure], factor):>19}" for _, measure, factor in COLUMNS)
        lines.append(f"{each['trace']:<14}{each['fleet']:<7}{each['policy']:<13}{cells}")
    lines.append(f"mean ± half of the 95 % confidence interval, over {results[0]['num_seeds']} seeds")
    return lines


def _wins(found: list[dict[str, Any]]) -> list[str]:
    """Where it does not win both, in words; that is what is worth reading."""
    lost = [each for each in found if not each["wins"]]
    won = f"{len(found) - len(lost)} of {len(found)}"
    lines = [f"min_ttft has the lower mean and p99 TTFT, beyond the seeds, in {won} comparisons"]
    for each in lost:
        apart = ", ".join(f"{name[5:-3]} {_cell(each[name], 1.0)} ms" for name in ("ttft_mean_ms", "ttft_p99_ms"))
        lines.append(f"  not against {each['against']} ({each['trace']}, {each['fleet']}): {apart}")
    return lines


def _cell(interval: dict[str, float], factor: float) -> str:
    half = (interval["high"] - interval["low"]) / 2
    return f"{interval['mean'] * factor:.4g} ± {half * factor:.2g}"
