"""A timing model from what the workers of a running cluster say of themselves, read from its `/metrics`.

    python -m loadgen timing http://127.0.0.1:8000 --seconds 30 --out mine.json

While the cluster serves ordinary traffic, its workers report what a prompt's token and a decode step cost them. That
is less than the steps themselves tell (`measured.fit`): a prompt's cost is taken to be linear in its tokens, and of a
decode step only its growth with the batch is seen, if the batch changed meanwhile.
"""

from __future__ import annotations

import sys
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
from cyclopts import Parameter
from prometheus_client.parser import text_string_to_metric_families

from diptych.engine.sim.timing import FittedTiming
from diptych.engine.sim.timing_spec import TimingFile, as_text

TIMEOUT_S = 10.0
PREFILL_RATE, DECODE_STEP, RUNNING = (
    "diptych_prefill_tokens_per_second",
    "diptych_decode_step_milliseconds",
    "vllm:num_requests_running",
)


@dataclass(frozen=True, slots=True)
class Report:
    """One worker at one moment. Rates are 0 until it has measured them."""

    worker_id: str
    num_running: float  # sequences
    prefill_tokens_per_s: float
    decode_step_ms: float


def timing(
    url: str,
    /,
    *,
    out: Path,
    seconds: float = 10.0,
    interval: float = 0.5,
    worker: str = "",
    api_key: Annotated[str, Parameter(env_var="OPENAI_API_KEY", show_default=False)] = "",
) -> int:
    """Measure a timing model on a running Diptych cluster, for simulated engines and for `replay`.

    Parameters
    ----------
    url
        The cluster's HTTP door. It should be under the kind of load that is to be simulated.
    out
        The file, for `--timing measured:FILE`.
    seconds
        How long to watch.
    interval
        Seconds between two looks.
    worker
        Only workers whose id begins like this.
    api_key
        Of the door, if it wants one; never written to a file.
    """
    try:
        seen = _watch(url, api_key, worker, seconds, interval)
        model = timing_of(seen)
        source: dict[str, str | int | float] = {"url": url, "workers": len({each.worker_id for each in seen})}
        now = datetime.now(UTC).isoformat(timespec="seconds")
        file = TimingFile(timing=as_text(model), measured_at=now, source=source | {"looks": len(seen)})
        out.write_bytes(msgspec.json.format(msgspec.json.encode(file)) + b"\n")
    except (ValueError, OSError) as error:
        print(f"loadgen timing: {error}", file=sys.stderr)
        return 1
    print(f"{out}: {_in_words(model)}")
    return 0


def timing_of(reports: Sequence[Report]) -> FittedTiming:
    """One model for all of them, taken to be alike.

    Raises:
        ValueError: none has computed a prompt, or none has decoded.
    """
    last = {each.worker_id: each for each in reports}.values()
    rates = [each.prefill_tokens_per_s for each in last if each.prefill_tokens_per_s > 0]
    steps = [each for each in reports if each.decode_step_ms > 0 and each.num_running >= 1]
    steps = steps or [each for each in last if each.decode_step_ms > 0]  # at rest the last step is still known
    if not rates or not steps:
        raise ValueError("no worker has measured both prompts and decoding yet; send the cluster some requests first")
    base_ms, row_ms = _line(steps)
    return FittedTiming(0.0, 1e3 * len(rates) / sum(rates), 0.0, base_ms, row_ms, 0.0)


def parse_reports(metrics: str) -> list[Report]:
    """The workers in a text of Prometheus."""
    found: dict[str, dict[str, float]] = {}
    for family in text_string_to_metric_families(metrics):
        if family.name in (PREFILL_RATE, DECODE_STEP, RUNNING):
            for sample in family.samples:
                found.setdefault(sample.labels["worker"], {})[family.name] = sample.value
    return [
        Report(worker_id, values.get(RUNNING, 0.0), values.get(PREFILL_RATE, 0.0), values.get(DECODE_STEP, 0.0))
        for worker_id, values in found.items()
    ]


def _line(steps: Sequence[Report]) -> tuple[float, float]:
    """Least squares of a step's ms over its rows: what it costs, and what each row adds; neither below 0."""
    rows = np.array([each.num_running for each in steps])
    step_ms = np.array([each.decode_step_ms for each in steps])
    mean = float(step_ms.mean())
    if np.ptp(rows) < 1:
        return mean, 0.0
    slope = float(np.cov(rows, step_ms, bias=True)[0, 1] / rows.var())
    slope = min(max(0.0, slope), mean / float(rows.mean()))
    return mean - slope * float(rows.mean()), slope


def _watch(url: str, api_key: str, worker: str, seconds: float, interval: float) -> list[Report]:
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    request = urllib.request.Request(f"{url.rstrip('/')}/metrics", headers=headers)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    seen, end = list[Report](), time.monotonic() + seconds
    while True:
        with opener.open(request, timeout=TIMEOUT_S) as response:
            text = response.read().decode("utf-8")
        seen += [each for each in parse_reports(text) if each.worker_id.startswith(worker)]
        if time.monotonic() + interval > end:
            return seen
        time.sleep(interval)


def _in_words(model: FittedTiming) -> str:
    return (
        f"{1e3 / model.prefill_c1_ms_per_token:.0f} prompt tokens/s; a decode step takes {model.decode_c0_ms:.2f} ms "
        f"and {model.decode_c1_ms_per_row:.3f} ms a sequence"
    )
