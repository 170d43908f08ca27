"""Why a request went where it went, as plain text for people. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from router.explain import Decision, Explanation, Outcome
from router.placement.weigh import Candidate

HEADER = ("", "PREFILL", "DECODE", "CACHED", "QUEUE", "PREFILL", "TRANSFER", "DISTURBS", "DECODE", "COST")
ALONE = "(decode alone)"
UNKNOWN = "?"


def explained(explanation: Explanation) -> str:
    client = f" ({explanation.client_id})" if explanation.client_id else ""
    lines = [f"{explanation.request_id}{client}: {explanation.prompt_tokens:,} prompt tokens"]
    for decision in explanation.decisions:
        lines += ["", *_decision(decision)]
    lines += ["", *(_outcome(explanation.outcome) if explanation.outcome else ["it runs; nothing is known yet"])]
    return "\n".join(lines)


def _decision(decision: Decision) -> list[str]:
    chosen, other = decision.chosen, decision.best_alternative
    lines = [
        f"attempt {decision.attempt + 1}: {_pair(chosen)}, because: {decision.reason}; "
        f"policy {decision.policy}, remote prefill {decision.remote_prefill}, decided in {decision.took_us:.0f} us",
        f"  believed: {chosen.cached_tokens:,} tokens cached there, {decision.matched_tokens:,} at most anywhere; "
        f"{decision.expected_completion_tokens:.0f} tokens to come; predictions are off by "
        f"{100 * decision.expected_error:.0f} % lately",
    ]
    if other is not None and decision.alternative_costs_more_ms is not None:
        more = decision.alternative_costs_more_ms
        than = f"{more:.1f} ms more" if more >= 0 else f"{-more:.1f} ms less"
        lines.append(f"  the best alternative, {_pair(other)}, would have cost {other.cost_ms:.1f} ms: {than}")
    else:
        lines.append("  there was no alternative")
    shown = decision.candidates if chosen in decision.candidates else [*decision.candidates, chosen]
    rows = [HEADER, *(_row(candidate, candidate == chosen) for candidate in shown)]
    return [*lines, *_aligned(rows), "  times in estimated ms"]


def _row(candidate: Candidate, chosen: bool) -> tuple[str, ...]:
    terms = (
        candidate.queue_ms,
        candidate.prefill_ms,
        candidate.exposed_transfer_ms,
        candidate.disturbance_ms,
        candidate.decode_ms,
        candidate.cost_ms,
    )
    names = ("->" if chosen else "", candidate.prefill or ALONE, candidate.decode, str(candidate.cached_tokens))
    return (*names, *(f"{term:.1f}" for term in terms))


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Names to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  " + "  ".join(map(_padded, row, widths, range(len(row)))).rstrip() for row in rows]


def _padded(cell: str, width: int, column: int) -> str:
    return cell.ljust(width) if column < 3 else cell.rjust(width)


def _outcome(outcome: Outcome) -> list[str]:
    retried = f" after {outcome.retries} retries" if outcome.retries else ""
    rows = [
        ("", "BELIEVED", "TRUE"),
        ("cached tokens", str(outcome.predicted_cached_tokens), _known(outcome.cached_tokens, 0)),
        ("time to first token, ms", f"{outcome.expected_ttft_ms:.1f}", _known(outcome.ttft_ms)),
        ("exposed transfer, ms", f"{outcome.expected_exposed_transfer_ms:.1f}", _known(outcome.exposed_transfer_ms)),
        ("queue, ms", "", _known(outcome.queue_ms)),
        ("prefill, ms", "", _known(outcome.prefill_ms)),
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    table = [f"  {a.ljust(widths[0])}  {b.rjust(widths[1])}  {c.rjust(widths[2])}" for a, b, c in rows]
    return [f"it ended: {outcome.outcome}{retried}, {outcome.completion_tokens} tokens", *table]


def _known(value: float | None, digits: int = 1) -> str:
    return UNKNOWN if value is None else f"{value:.{digits}f}"


def _pair(candidate: Candidate) -> str:
    return f"{candidate.prefill} and {candidate.decode}" if candidate.prefill else f"{candidate.decode} alone"
