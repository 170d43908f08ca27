"""A timing model from a measured run, or from what the workers of a running cluster say in its `/metrics`.

    python -m loadgen timing runs/mine --out mine.json                              see `from_run`
    python -m loadgen timing http://127.0.0.1:8000 --seconds 30 --out mine.json

The second watches. While the cluster serves ordinary traffic, its workers report what a prompt's token and a decode
step cost them. That is less than requests tell, or the steps themselves (`measured.fit`): a prompt's cost is taken to
be linear in its tokens, of a decode step only its growth with the batch is seen, if the batch changed meanwhile, and
the way to a worker and back not at all.
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

from diptych.engine.sim.timing import FittedTiming, StepShape
from diptych.engine.sim.timing_spec import TimingFile, as_text, parse_timing
from loadgen.sim.from_run import timing_file_of_runs

TIMEOUT_S = 10.0
MIDDLE = 256  # tokens, for examples
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
    source: str,
    /,
    *,
    out: Path,
    max_batch_tokens: int = 512,
    seconds: float = 10.0,
    interval: float = 0.5,
    worker: str = "",
    api_key: Annotated[str, Parameter(env_var="OPENAI_API_KEY", show_default=False)] = "",
) -> int:
    """Measure a timing model on a running Diptych cluster, for simulated engines, `plan` and `replay`.

    Parameters
    ----------
    source
        A measured run with reports (NAME.run.json of `loadgen run` with return_report, or a folder of them): says most.
        Or the cluster's HTTP door, to watch while it is under the kind of load that is to be simulated.
    out
        The file, for `--timing measured:FILE`.
    max_batch_tokens
        Of the workers; of a run: in how many steps a prompt was computed.
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
        watched = source.startswith(("http://", "https://"))
        file = (
            _watched(source, api_key, worker, seconds, interval)
            if watched
            else timing_file_of_runs(Path(source), max_batch_tokens, _now())
        )
        out.write_bytes(msgspec.json.format(msgspec.json.encode(file)) + b"\n")
    except (ValueError, OSError) as error:
        print(f"loadgen timing: {error}", file=sys.stderr)
        return 1
    print(f"{out}: {_in_words(file)}")
    return 0


def _watched(url: str, api_key: str, worker: str, seconds: float, interval: float) -> TimingFile:
    seen = _watch(url, api_key, worker, seconds, interval)
    source: dict[str, str | int | float] = {"url": url, "workers": len({each.worker_id for each in seen})}
    return TimingFile(timing=as_text(timing_of(seen)), measured_at=_now(), source=source | {"looks": len(seen)})


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def timing_of(reports: Sequence[Report]) -> FittedTiming:
    """One model for all of them, taken to be alike.

    Raises:
        ValueError: none has computed a prompt, or none has decoded.
    """
    last = {each.worker_id: each for each in reports}.values()
    rates = [each.prefill_tokens_per_s for each in new_rates(reports)]
    steps = [each for each in reports if each.decode_step_ms > 0 and each.num_running >= 1]
    steps = steps or [each for each in last if each.decode_step_ms > 0]  # at rest the last step is still known
    if not rates or not steps:
        raise ValueError("no worker has measured both prompts and decoding yet; send the cluster some requests first")
    base_ms, row_ms = _line(steps)
    token_ms = sum(1e3 / rate for rate in rates) / len(rates)
    return FittedTiming(0.0, token_ms, 0.0, base_ms, row_ms, 0.0)


def new_rates(reports: Sequence[Report]) -> list[Report]:
    """Of each worker those that tell another prefill rate than the one before: one at rest repeats its last."""
    known, found = dict[str, float](), list[Report]()
    for each in reports:
        if each.prefill_tokens_per_s > 0 and known.get(each.worker_id) != each.prefill_tokens_per_s:
            known[each.worker_id] = each.prefill_tokens_per_s
            found.append(each)
    return found


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


def _in_words(file: TimingFile) -> str:
    model = parse_timing(file.timing)
    step = f"a decode step of one sequence takes {model.decode_run_ms(1, MIDDLE, 1)[0]:.2f} ms, "
    step += f"of eight {model.decode_run_ms(8, 8 * MIDDLE, 1)[0]:.2f}, with {MIDDLE} tokens each"
    way = "" if file.hop_ms is None else f"; a way between client, router and worker {file.hop_ms:.2f} ms"
    return f"a prompt of {MIDDLE} tokens takes {model.step_ms(StepShape(((0, MIDDLE),), 0, 0)):.0f} ms; {step}{way}"
