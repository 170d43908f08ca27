"""A plan in words and as data."""

from __future__ import annotations

import math
from typing import Any

import msgspec

from loadgen.planner.backtest import Backtest, Compared
from loadgen.planner.cells import Outcome
from loadgen.planner.flatness import flat_range, flatness, name_of
from loadgen.planner.search import Found, Search, flat_region
from loadgen.sim.intervals import Interval
from loadgen.sim.metrics import Limits


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that is said, and what it rests on."""

    trace: str
    num_requests: int
    offered_rps: float
    jitter_ms: float
    engine: str
    policy: str
    limits: dict[str, float]  # ttft_ms, tpot_ms, attainment
    flat: float
    seeds: int
    runs: int  # simulations of the whole traffic
    wall_s: float
    by_size: dict[int, float]  # what the best of each tried number of workers attains
    backtests: list[Backtest]


def as_data(plan: Plan, search: Search) -> dict[str, Any]:
    """For JSON. The names are part of what `plan --json` promises."""
    overall, disaggregation = search.overall, verdict(search)
    return {
        **msgspec.to_builtins(plan),
        "backtested": bool(plan.backtests),
        "backtest_mean_error": [each.mean_error for each in plan.backtests],
        "num_workers": search.num_workers,
        "exact": search.exact,
        "num_ratios": search.num_workers - 1,
        "num_simulated": search.num_simulated,
        "flat_range": flat_range(search.plateau),
        "best": _cell(overall),
        "best_ratio": _cell(search.found[0]) if search.found else None,
        "colocated": _cell(search.colocated),
        "flat": [str(each.fleet) for each in flat_region(search.found, plan.flat)],
        "indistinguishable": [str(each.fleet) for each in search.found if each.may_be_best],
        "gain_over_colocated": msgspec.to_builtins(search.gain),
        "disaggregation": disaggregation,
        "attained_on_fresh_seeds": search.attained,
        "meets_target": search.attained >= plan.limits["attainment"],
        "cells": [_cell(each) for each in (*search.found, search.colocated)],
    }


def verdict(search: Search) -> str:
    """pays, does not pay, or cannot tell: of the best ratio against colocated, on fresh seeds."""
    if search.gain is None:
        return "does not apply"
    if search.gain.num_samples > 1:
        if search.gain.low > 0:
            return "pays"
        if search.gain.high < 0:
            return "does not pay"
    return "makes no difference" if search.gain.low == search.gain.high == 0 else "cannot tell"


def as_text(plan: Plan, search: Search) -> str:
    lines = [
        f"{plan.trace}: {plan.num_requests} requests, {plan.offered_rps:.3g} a second; {plan.engine}; {plan.policy}",
        f"good: first token within {plan.limits['ttft_ms']:g} ms, then {plan.limits['tpot_ms']:g} ms a token",
        "",
        *_table(search),
        "",
        *_best(plan, search),
        *_against_colocated(search),
        *_backtests(plan.backtests),
        _effort(plan, search),
    ]
    return "\n".join(lines)


def _table(search: Search) -> list[str]:
    lines = [
        f"{'workers':<10}{'good':>18}{'goodput/s':>11}{'TTFT mean':>11}{'p90':>9}{'p99':>9}{'TPOT':>7}{'seeds':>7}"
    ]
    for each in (*search.found, search.colocated):
        mean, half = each.mean, (each.attainment.high - each.attainment.low) / 2
        good = f"{mean.attainment:.1%} ± {half:.1%}" if len(each.outcomes) > 1 else f"{mean.attainment:.1%}"
        lines.append(
            f"{name_of(each.fleet):<10}{good:>18}{mean.goodput_rps:>11.3g}{mean.ttft_mean_ms:>11.0f}"
            f"{mean.ttft_p90_ms:>9.0f}{mean.ttft_p99_ms:>9.0f}{mean.tpot_mean_ms:>7.1f}{len(each.outcomes):>7}"
        )
    return lines


def _best(plan: Plan, search: Search) -> list[str]:
    overall, target = search.overall, plan.limits["attainment"]
    fresh = " on seeds that did not choose it" if search.found else ""
    lines = [f"Best of {search.num_workers} workers: {name_of(overall.fleet)}, {search.attained:.1%} good{fresh}."]
    if search.attained < target:
        lines.append(f"That misses the target of {target:.0%}: more workers, or wider limits.")
    if plan.by_size:
        tried = ", ".join(f"{size}: {attained:.1%}" for size, attained in plan.by_size.items())
        lines.append(f"By number of workers, the best of each: {tried}.")
    return lines + (flatness(search, plan.flat) if search.found else [])


def _against_colocated(search: Search) -> list[str]:
    if search.gain is None or search.fresh_best is None or search.fresh_colocated is None:
        return ["One worker has nothing to split."]
    name, gain = name_of(search.found[0].fleet), search.gain
    said = {
        "pays": f"Disaggregation pays: {name} serves more within the limits than {search.num_workers} colocated",
        "does not pay": f"Disaggregation does not pay: colocated serves more within the limits than {name}",
        "makes no difference": f"Disaggregation makes no difference: {name} against {search.num_workers} colocated",
        "cannot tell": f"Cannot tell whether disaggregation pays: {name} against {search.num_workers} colocated",
    }[verdict(search)]
    return [
        f"{said}: {gain.mean * 100:+.1f} points on {search.fresh_colocated.attainment:.1%} ({_points(gain)}).",
        f"  TTFT mean {_versus(search.fresh_best, search.fresh_colocated, 'ttft_mean_ms')}, "
        f"p99 {_versus(search.fresh_best, search.fresh_colocated, 'ttft_p99_ms')}, "
        f"TPOT mean {_versus(search.fresh_best, search.fresh_colocated, 'tpot_mean_ms')} ms",
    ]


def _backtests(backtests: list[Backtest]) -> list[str]:
    if not backtests:
        return [
            "Not back-tested: nothing here was held against a measured run "
            "(--backtest NAME.run.json --backtest-fleet 1P+1D)."
        ]
    lines = []
    for each in backtests:
        lines.append(
            f"Back-tested against {each.run} ({each.fleet}, {each.num_requests} requests): "
            f"off by {each.mean_error:.0%} on average."
        )
        if not each.valid:
            lines.append("  That run says of itself that its figures are not to be believed.")
        if not each.known_real:
            lines.append("  Whether a model computed in that run is not known: its server did not say.")
        if each.timing_from_it:
            lines.append("  The timing was taken from that very run: this says how well it fits, and is no test.")
        if each.differs:
            lines.append(f"  That run was of other traffic than this plan: {'; '.join(each.differs)}.")
        lines += [
            f"  {one.name:<14} predicted {one.predicted:>9.3g}   measured {one.measured:>9.3g}   {_error(one)}"
            for one in each.compared
        ]
    return lines


def _error(of: Compared) -> str:
    """Of what was 0 there is no relative error."""
    return f"{of.error:+.0%}" if math.isfinite(of.error) else "–"


def _effort(plan: Plan, search: Search) -> str:
    return (
        f"{plan.runs} simulations of {plan.num_requests} requests in {plan.wall_s:.1f} s; up to {plan.seeds} seeds a "
        f"fleet, as many fresh ones against colocated; arrivals move by up to {plan.jitter_ms:.0f} ms between seeds."
    )


def _cell(found: Found) -> dict[str, Any]:
    return {
        "fleet": str(found.fleet),
        "prefill": found.fleet.num_prefill,
        "decode": found.fleet.num_decode,
        "seeds": len(found.outcomes),
        "attainment_interval": msgspec.to_builtins(found.attainment),
        "minus_best": msgspec.to_builtins(found.minus_best),
        **msgspec.to_builtins(found.mean),
    }


def _points(of: Interval) -> str:
    if of.num_samples < 2:
        return "one seed, no interval"
    return f"95 %: {of.low * 100:+.1f} to {of.high * 100:+.1f}"


def _versus(ours: Outcome, theirs: Outcome, name: str) -> str:
    return f"{getattr(ours, name):.0f} against {getattr(theirs, name):.0f}"


def limits_as_data(limits: Limits, attainment: float) -> dict[str, float]:
    return {"ttft_ms": limits.ttft_ms, "tpot_ms": limits.tpot_ms, "attainment": attainment}
