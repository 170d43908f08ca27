"""Where a run went and what it cost, as clients may ask for it: `return_report`, and the header of the placement."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from diptych.messages import LegStats
from router.openai_answers import PlacementReport, PromptTokens, RunReport
from router.prompt_run import PromptRun

PLACEMENT_HEADER = "x-diptych-placement"


def run_report(run: PromptRun) -> RunReport:
    """Prompt tokens are listed for each worker that handled the prompt: both of a pair, or decode alone."""
    report = run.report
    legs = {report.prefill_id or report.decode_id: report.prefill}
    if report.prefill_id:
        legs[report.decode_id] = report.decode
    moved, computed = report.decode or LegStats(), report.prefill or LegStats()
    return RunReport(
        prefill_worker=report.prefill_id or None,
        decode_worker=report.decode_id,
        reason=report.reason,
        predicted_cached_tokens=report.predicted_cached,
        cached_tokens=report.cached_tokens,
        prompt_tokens={worker: _by_source(stats) for worker, stats in legs.items() if stats is not None},
        queue_ms=computed.queue_ms,
        prefill_ms=computed.compute_ms,
        transfer_bytes=moved.transfer_bytes,
        transfer_ms=moved.transfer_ms,
        exposed_ms=moved.exposed_ms,
        expected_ttft_ms=report.expected_ms,
        ttft_ms=run.ttft_ms,
    )


def placement_header(runs: Sequence[PromptRun]) -> str:
    """One JSON object; of several prompts an array of them. ASCII, as headers have to be."""
    reports = [_placement(run) for run in runs]
    return msgspec.json.encode(reports[0] if len(reports) == 1 else reports).decode("ascii")


def _placement(run: PromptRun) -> PlacementReport:
    report = run.report
    return PlacementReport(
        request_id=run.request.request_id,
        prefill_worker=report.prefill_id or None,
        decode_worker=report.decode_id,
        reason=report.reason,
        predicted_cached_tokens=report.predicted_cached,
        cached_tokens=report.prefill.prompt_cached if report.prefill else None,
        expected_ttft_ms=round(report.expected_ms, 3),
        ttft_ms=None if run.ttft_ms is None else round(run.ttft_ms, 3),
        retries=report.num_retries,
    )


def _by_source(stats: LegStats) -> PromptTokens:
    return PromptTokens(stats.prompt_computed, stats.prompt_cached, stats.prompt_transferred)
