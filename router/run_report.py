"""A finished run as the report clients may ask for with `return_report`."""

from __future__ import annotations

from diptych.messages import LegStats
from router.openai_answers import PromptTokens, RunReport
from router.prompt_run import PromptRun


def run_report(run: PromptRun) -> RunReport:
    """Prompt tokens are listed for each worker that handled the prompt: both of a pair, or decode alone."""
    report = run.report
    legs = {report.prefill_id or report.decode_id: report.prefill}
    if report.prefill_id:
        legs[report.decode_id] = report.decode
    moved = report.decode or LegStats()
    return RunReport(
        prefill_worker=report.prefill_id or None,
        decode_worker=report.decode_id,
        reason=report.reason,
        predicted_cached_tokens=report.predicted_cached,
        cached_tokens=report.cached_tokens,
        prompt_tokens={worker: _by_source(stats) for worker, stats in legs.items() if stats is not None},
        transfer_bytes=moved.transfer_bytes,
        transfer_ms=moved.transfer_ms,
        exposed_ms=moved.exposed_ms,
        expected_ttft_ms=report.expected_ms,
        ttft_ms=run.ttft_ms,
    )


def _by_source(stats: LegStats) -> PromptTokens:
    return PromptTokens(stats.prompt_computed, stats.prompt_cached, stats.prompt_transferred)
