"""The commands `run` and `report` of `python -m loadgen`: flags in, files and a summary out."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from cyclopts import Parameter

from loadgen.arrivals import Arrivals, ClosedLoop, OpenLoop, TraceTimes, parse_rate
from loadgen.client.config import Endpoint, Progress, PromptForm, RunConfig
from loadgen.client.run import ShardFailed, run_once
from loadgen.client.told import Told, cancel_when_told
from loadgen.report.export import csv_text, json_bytes
from loadgen.report.figures import group
from loadgen.report.page import report_page
from loadgen.report.result import STOPPED, RunResult, read_result
from loadgen.report.terminal import summary_text

INVALID = 3  # exit status of a run that was measured, but whose figures say nothing about the server
RESULT_SUFFIX, RECORDS_SUFFIX = ".run.json", ".requests.jsonl"


def run(
    url: str,
    *,
    model: str,
    workload: str = "independent",
    rate: str = "",
    concurrency: int = 0,
    arrivals: Literal["poisson", "gamma", "constant", "trace"] = "poisson",
    burstiness: float = 1.0,
    speedup: float = 1.0,
    jitter_ms: float = 0.0,
    requests: int = 0,
    duration: float = 0.0,
    warmup: float = 0.0,
    tail: float = 0.0,
    seed: int = 0,
    salt: int = -1,
    repeats: int = 1,
    processes: int = 1,
    endpoint: Endpoint = "completions",
    prompt: PromptForm = "ids",
    vocabulary_size: int = 32_000,
    max_input: int = 0,
    max_output: int = 0,
    tokenizer: str = "",
    ignore_eos: bool = True,
    continuous_usage: bool = False,
    extra_body: str = "{}",
    header: Sequence[str] = (),
    api_key: Annotated[str, Parameter(env_var="OPENAI_API_KEY", show_default=False)] = "",
    ca: str = "",
    timeout: float = 600.0,
    ttft_limit_ms: float = 1_000.0,
    tpot_limit_ms: float = 50.0,
    lag_limit_ms: float = 10.0,
    name: str = "",
    out: Path = Path("loadgen-runs"),
) -> int:
    """Measure an OpenAI-compatible server over HTTP.

    Writes NAME-SEED.run.json (figures) and NAME-SEED.requests.jsonl (one line for each request) of every repeat, and
    summary.json, summary.csv and report.html of all of them, into the folder OUT. The exit status is 3 if a run's
    figures say nothing about the server, e.g. because the generator fell behind; 130 or 143 if it was stopped, by
    Ctrl-C or SIGTERM: what was measured until then is kept.

    Parameters
    ----------
    url
        The server, e.g. http://127.0.0.1:8000.
    model
        The model's name there.
    workload
        What is sent: a generator (independent, prefix-share, shared-system, sessions, agents, documents) with
        parameters, e.g. `sessions:turns=3..6,user=50`; a mixture, e.g. `3*sessions+1*documents`; or recorded traffic,
        e.g. mooncake:FILE, azure:FILE, bailian:FILE, burstgpt:FILE, sharegpt:FILE, log:FILE.
    rate
        Requests a second of an open loop: 10 level, 1..20 a ramp over the duration, 5|10|20 equal steps.
    concurrency
        Requests at a time of a closed loop, instead of a rate.
    arrivals
        Spacing of an open loop, or the workload's own times.
    burstiness
        Shape of gamma arrivals: 1 is Poisson, below 1 bursts.
    speedup
        Of the workload's own times.
    jitter_ms
        Up to so much is added to each of the workload's own times.
    requests
        At most so many; 0: as many as the rate and duration, or the file, give.
    duration
        Seconds of sending. Answers are waited for.
    warmup
        Seconds at the beginning that are not measured.
    tail
        Seconds at the end that are not measured.
    seed
        Of arrivals, lengths and prompts; the next repeat has the next seed.
    salt
        Of prompts. -1: a new one, so that nothing of an earlier run is in the server's cache; it is in the results.
    repeats
        Runs, one after the other.
    processes
        Of the generator, where one cannot keep up.
    endpoint
        /v1/completions or /v1/chat/completions.
    prompt
        Token ids, or words for servers that take text only. Chat is always text.
    vocabulary_size
        Token ids are from 256 up to this.
    max_input
        Tokens; longer prompts lose their end. 0: no limit.
    max_output
        Tokens; 0: no limit.
    tokenizer
        A tokenizer.json to count ShareGPT's texts with; estimated when empty.
    ignore_eos
        Ask for answers of exactly the planned length.
    continuous_usage
        Ask for token counts in every event: right ITLs where an event holds several tokens.
    extra_body
        JSON object of further fields of every request; null takes a field away.
    header
        "Name: value", of every request.
    api_key
        Sent as bearer token; never written to a file.
    ca
        PEM file of the authority that signed an https server's certificate, if it is a private one.
    timeout
        Seconds for one request.
    ttft_limit_ms
        Of goodput.
    tpot_limit_ms
        Of goodput.
    lag_limit_ms
        How late the generator may be, 99 % of the time.
    name
        Of what is measured, for reports.
    out
        Folder for the results.
    """
    told = Told()
    try:
        length = duration or None
        config = RunConfig(
            base_url=url,
            model=model,
            name=name,
            workload=workload,
            arrivals=_arrivals(arrivals, rate, concurrency, burstiness, speedup, jitter_ms, length),
            num_requests=requests or None,
            duration_s=length,
            warmup_s=warmup,
            tail_s=tail,
            seed=seed,
            salt=time.time_ns() >> 20 if salt < 0 else salt,  # new every millisecond
            processes=processes,
            endpoint=endpoint,
            prompt=prompt,
            vocabulary_size=vocabulary_size,
            max_input=max_input or None,
            max_output=max_output or None,
            tokenizer=tokenizer,
            ignore_eos=ignore_eos,
            continuous_usage=continuous_usage,
            extra_body=_object(extra_body),
            timeout_s=timeout,
            ttft_limit_ms=ttft_limit_ms,
            tpot_limit_ms=tpot_limit_ms,
            lag_limit_ms=lag_limit_ms,
        )
        out.mkdir(parents=True, exist_ok=True)
        configs = [msgspec.structs.replace(config, seed=seed + number) for number in range(repeats)]
        results = asyncio.run(_run_all(configs, _headers(header, api_key), ca, out, told))
    except (ValueError, OSError, ShardFailed) as error:
        return _fail(error)
    except (KeyboardInterrupt, asyncio.CancelledError):
        _fail("stopped; nothing was kept")
        return told.exit_status
    _write_report(results, out / "report.html", "")
    if len(results) < repeats or STOPPED in results[-1].invalid_because:
        return told.exit_status
    return 0 if all(result.valid for result in results) else INVALID


def report(results: Sequence[Path], *, out: Path = Path("report.html"), title: str = "") -> int:
    """Make one page, a CSV and a JSON file of results, side by side.

    Parameters
    ----------
    results
        Files that `run` wrote (NAME.run.json), or folders of them. Runs that differ in their seed only are repeats.
    out
        The page. The tables go beside it.
    title
        Of the page.
    """
    try:
        files = [
            file for path in results for file in (sorted(path.glob(f"*{RESULT_SUFFIX}")) if path.is_dir() else [path])
        ]
        _write_report([read_result(file) for file in files], out, title)
    except (ValueError, OSError) as error:
        return _fail(error)
    return 0


async def _run_all(
    configs: Sequence[RunConfig], headers: dict[str, str], ca: str, out: Path, told: Told
) -> list[RunResult]:
    """Fewer than `configs` where it was stopped."""
    cancel_when_told(told)
    results: list[RunResult] = []
    for config in configs:
        stem = f"{config.name or 'run'}-{config.seed}".replace("/", "_")
        try:
            result = await run_once(
                config,
                headers=headers,
                ca_file=ca,
                records_path=out / f"{stem}{RECORDS_SUFFIX}",
                on_progress=_show_progress,
            )
        except asyncio.CancelledError:
            if not results:
                raise
            break
        (out / f"{stem}{RESULT_SUFFIX}").write_bytes(msgspec.json.encode(result))
        results.append(result)
        if STOPPED in result.invalid_because:
            break
    return results


def _write_report(results: Sequence[RunResult], page: Path, title: str) -> None:
    series = group(results)
    html = report_page(series, title)
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(html, encoding="utf-8")
    page.with_name("summary.csv").write_text(csv_text(series), encoding="utf-8")
    page.with_name("summary.json").write_bytes(json_bytes(series))
    print(summary_text(series))
    print(f"  {page}")


def _arrivals(
    kind: Literal["poisson", "gamma", "constant", "trace"],
    rate: str,
    concurrency: int,
    burstiness: float,
    speedup: float,
    jitter_ms: float,
    duration_s: float | None,
) -> Arrivals:
    if sum((bool(rate), bool(concurrency), kind == "trace")) != 1:
        raise ValueError("give one of --rate, --concurrency and --arrivals trace")
    if concurrency:
        return ClosedLoop(concurrency)
    if kind == "trace":
        return TraceTimes(speedup, jitter_ms)
    return OpenLoop(parse_rate(rate, duration_s), kind, burstiness)


def _headers(lines: Sequence[str], api_key: str) -> dict[str, str]:
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return headers | ({"authorization": f"Bearer {api_key}"} if api_key else {})


def _object(text: str) -> dict[str, Any]:
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except ValueError as error:
        raise ValueError(f"extra_body is no JSON object: {error}") from None


def _show_progress(progress: Progress) -> None:
    end = "\r" if sys.stderr.isatty() else "\n"
    with contextlib.suppress(BrokenPipeError):
        print(f"  {progress}", end=end, file=sys.stderr, flush=True)


def _fail(error: object) -> int:
    print(f"loadgen: {error}", file=sys.stderr)
    return 1
