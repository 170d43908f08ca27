"""The design and the verdict in words, as data, and as one page."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import msgspec

from loadgen.falsify.block import Block
from loadgen.falsify.design import Design
from loadgen.falsify.verdict import EXIT_STATUS, RemotePrefill, Verdict
from loadgen.report.result import UNKNOWN_IF_SIMULATED
from loadgen.report.style import CSS
from loadgen.sim.intervals import Interval


def as_data(design: Design, blocks: Sequence[Block], verdict: Verdict, salt: int) -> dict[str, Any]:
    """
    Args:
        salt: of the trial's prompts.
    """
    return {
        "sha256": design.digest,
        "verdict": verdict.answer.value,
        "exit_status": EXIT_STATUS[verdict.answer],
        "simulated": is_simulated(design, blocks),
        "salt": salt,
        **{name: value for name, value in msgspec.to_builtins(verdict).items() if name != "answer"},
        "blocks": [{**msgspec.to_builtins(block), "difference": block.difference} for block in blocks],
        "design": msgspec.to_builtins(design),
    }


def is_simulated(design: Design, blocks: Sequence[Block]) -> bool | None:
    """Whether any run was: by design, or because the cluster's engine is. None: not known of every run."""
    found = {design.simulated or side.simulated for block in blocks for side in (block.first, block.second)}
    return True if design.simulated or True in found else False if found == {False} else None


def design_text(design: Design) -> str:
    ours, theirs = design.arms
    rows = {
        "question": f"{design.question}: {design.claim}",
        "A": f"{ours.name}: {ours.shape}, {ours.policy}",
        "B": f"{theirs.name}: {theirs.shape}, {theirs.policy}",
        "both": f"{ours.max_batch_tokens} tokens a step; {design.system}",
        "with": msgspec.json.encode(design.options).decode(),
        "model": design.model or "",
        "program": design.program or "",
        "client": msgspec.json.encode(design.client).decode(),
        "traffic": _traffic(design),
        "limits": f"TTFT {design.ttft_ms:g} ms, TPOT {design.tpot_ms:g} ms",
        "primary metric": design.primary,
        "effect": f"{design.effect}; at least {design.minimal_effect * 100:g} points count",
        "blocks": f"{design.num_blocks}, in the order {' '.join(design.orders)} (seed {design.seed})",
        "resolution": _resolution(design),
        "settling": f"{design.settle_requests} requests a worker, when the arm changes" * bool(design.settle_requests),
        "stopping": design.stopping,
        "exclusion": design.exclusion,
        "void": design.void,
        "analysis": design.analysis,
        "sha256": design.digest,
    }
    head = "Pre-registered, before the first request" + (" (SIMULATED: nothing is measured)" * design.simulated)
    return "\n".join([head, *(f"  {name:<15} {text}" for name, text in rows.items() if text)])


def verdict_text(design: Design, blocks: Sequence[Block], verdict: Verdict) -> str:
    ours, theirs = design.arms
    lines = [f"{'block':<7}{'order':<7}{ours.name:>15}{theirs.name:>15}{'difference':>12}"]
    for block in blocks:
        sides = "".join(f"{side.attainment:>15.1%}" for side in (block.first, block.second))
        note = "" if block.valid else f"   left out: {'; '.join(block.doubts)}"
        lines.append(f"{block.number + 1:<7}{block.order:<7}{sides}{block.difference * 100:>+12.1f}{note}")
    if verdict.secondary:
        lines += ["", "Not for the verdict:"]
        lines += [
            f"  {each.name:<16}{each.first:>12.4g}{each.second:>12.4g}"
            f"   {each.difference.mean:+.3g} ({_range(each.difference, 1)})"
            for each in verdict.secondary
        ]
    used = [f"  {text}" for text in remote_words(design, verdict)]
    why = f"  {verdict.why}"
    return "\n".join([*lines, "", headline(design, blocks, verdict), why, *used, f"  sha256 {design.digest}"])


def remote_words(design: Design, verdict: Verdict) -> list[str]:
    """Of every arm with prefill workers; nothing where the server did not say."""
    return [_used(design, each) for each in verdict.remote_prefill]


def _used(design: Design, of: RemotePrefill) -> str:
    if of.used:
        return f"{of.arm}: the router used a prefill worker for {of.used} of {of.requests} requests"
    text = f"{of.arm}: the router used a prefill worker for none of {of.requests} requests"
    arm, other = sorted(design.arms, key=lambda arm: arm.name != of.arm)
    if other.prefill:
        return text
    return f"{text}: this arm differs from {other.name} only by prefill workers ({arm.prefill}) that stood idle"


def headline(design: Design, blocks: Sequence[Block], verdict: Verdict) -> str:
    simulated = is_simulated(design, blocks)
    unknown = simulated is None and blocks  # without a block nothing is said that a model could have had a part in
    label = "SIMULATED, not measured: " if simulated else f"{UNKNOWN_IF_SIMULATED}. " if unknown else ""
    effect = (
        "no effect can be stated"
        if verdict.effect is None
        else (
            f"{verdict.effect.mean * 100:+.1f} points of attainment (95 %: {_range(verdict.effect, 100)}), "
            f"{verdict.blocks_used} blocks"
        )
    )
    answer = verdict.answer.value.upper() + ", BOTH ARMS FAILED" * verdict.both_failed
    return f"{label}{design.question}: {answer}. {effect}"


def page(design: Design, blocks: Sequence[Block], verdict: Verdict) -> str:
    """One HTML page without a script that opens offline."""
    title = f"{design.question} on {design.traffic.trace}: {verdict.answer.value}"
    title += " (simulated)" if is_simulated(design, blocks) else ""
    ours, theirs = (arm.name for arm in design.arms)
    rows = "".join(
        f"<tr><th>{block.number + 1} ({block.order}){'' if block.valid else ', left out'}</th>"
        f"<td>{block.first.attainment:.1%}</td><td>{block.second.attainment:.1%}</td>"
        f"<td>{block.difference * 100:+.1f}</td></tr>"
        for block in blocks
    )
    more = "".join(
        f"<tr><th>{escape(each.name)}</th><td>{each.first:.4g}</td><td>{each.second:.4g}</td>"
        f"<td>{each.difference.mean:+.3g}<small>{_range(each.difference, 1)}</small></td></tr>"
        for each in verdict.secondary
    )
    head = (
        f"<thead><tr><th></th><th>{escape(ours)}</th><th>{escape(theirs)}</th><th>difference</th></tr></thead><tbody>"
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{CSS}</style></head><body><main><h1>{escape(title)}</h1>"
        f'<div class="card verdict"><b>{escape(headline(design, blocks, verdict))}</b>'
        f"<p>{'<br>'.join(map(escape, [verdict.why, *remote_words(design, verdict)]))}</p></div>"
        f"{_section('Attainment by block', head + rows)}{_section('Not for the verdict', head + more)}"
        f"<section><h2>What was fixed beforehand</h2><pre>{escape(design_text(design))}</pre></section>"
        "</main></body></html>\n"
    )


def _section(heading: str, table: str) -> str:
    return f'<section><h2>{heading}</h2><div class="card scroll"><table>{table}</tbody></table></div></section>'


def _resolution(design: Design) -> str:
    finest, least = design.finest * 100, design.minimal_effect * 100
    text = f"at best ±{finest:.1f} points, where all blocks agree: one request more or less in each run"
    if finest < least:
        return text
    return f"{text}; that a gain is less than {least:g} points cannot be told so: more --requests would, or --blocks"


def _traffic(design: Design) -> str:
    of, each = design.traffic, design.stretches[0]
    share = each.count * design.num_blocks / of.requests_in_trace
    load = f"{of.rate:g} requests/s instead of its times" if of.rate else "at its own times"
    if of.speedup != 1.0:
        load = f"its times divided by {of.speedup:g}, so this is not the recorded load"
    cut = f"; {of.num_cut} requests are cut to {of.max_input} in, {of.max_output} out" if of.num_cut else ""
    return (
        f"{of.trace}, {of.requests_in_trace} requests: {design.num_blocks} disjoint stretches of {each.count} "
        f"({share:.0%} of it), {load}{cut}; the first {of.warmup_share:.0%} of each is warm-up"
    )


def _range(of: Interval, factor: float) -> str:
    return f"{of.low * factor:+.3g} to {of.high * factor:+.3g}"
