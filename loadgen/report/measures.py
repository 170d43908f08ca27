"""From records to figures. Pure; says nothing about how they are shown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from loadgen.arrivals import ClosedLoop
from loadgen.client.config import RunConfig, ShardReport
from loadgen.client.records import Record
from loadgen.report.goodput import Rate, goodput_of, is_short, meets
from loadgen.report.intervals import Values, block_bootstrap
from loadgen.report.phases import phases as phases_of
from loadgen.report.summary import QUANTILES, Cache, Distribution, Generator, Summary
from loadgen.report.timeline import timeline

NAMED = ("mean", "p50", "p90", "p95", "p99")
PERCENTS = (50, 90, 95, 99)


def summarise(
    config: RunConfig,
    records: Sequence[Record],
    shards: Sequence[ShardReport],
    window_ms: tuple[float, float],
    possible_hit_rate: float,
) -> Summary:
    """
    Args:
        records: of all processes, in order of intended time, with their phase.
        window_ms: from when to when requests were measured. Without a length there are no rates: they are 0.
        possible_hit_rate: of the plan, see `Cache`.
    """
    measured = [each for each in records if each.phase == "measured"]
    good = [each for each in measured if each.ok]
    phases = Counter(each.phase for each in records)
    # A closed loop's requests come when others end, and those that were sent in a window end after it: what it got
    # done in a time is what ended in it. An open loop's requests come at their own times, and are judged by those.
    closed = isinstance(config.arrivals, ClosedLoop)
    counted = [each for each in records if _inside(_end_ms(each), window_ms)] if closed else measured
    rate = Rate((window_ms[1] - window_ms[0]) / 1e3)
    gaps, basis = inter_token_gaps(good)
    latencies = {
        "ttft": distribution(_known(each.ttft_ms for each in good)),
        "tpot": distribution(_known(each.tpot_ms for each in good)),
        "itl": distribution(gaps, resample=False),
        "e2e": distribution(_known(each.e2e_ms for each in good)),
    }
    failures = Counter(each.failure for each in measured if not each.ok)
    return Summary(
        window_s=round(rate.window_s, 6),
        sent=len(records),
        warmup=phases["warmup"],
        measured=len(measured),
        tail=phases["tail"],
        succeeded=len(good),
        failures=dict(failures.most_common()),
        refused=sum(each.refused for each in measured),
        failed_outside=sum(not each.ok for each in records if each.phase != "measured"),
        short_answers=sum(is_short(each, config) for each in good),
        offered_per_s=rate(len(measured)),
        requests_per_s=rate(sum(each.ok and _inside(_end_ms(each), window_ms) for each in records)),
        input_tokens_per_s=rate(sum(_prompt(each) for each in records if _inside(_first_ms(each), window_ms))),
        output_tokens_per_s=rate(_tokens_inside(records, window_ms)),
        latencies={name: made for name, made in latencies.items() if made is not None},
        itl_basis=basis,
        tpot_basis="events" if any(not each.tokens_counted for each in good) else "tokens",
        lumps=sum(each.is_lump for each in good),
        goodput=goodput_of(config, measured, counted, rate),
        cache=_cache(good, possible_hit_rate),
        phases=phases_of(good),
        generator=_generator(records, shards),
        timeline=timeline(records),
        by_label=_by_label(config, measured, counted, rate),
    )


def distribution(values: Values, resample: bool = True) -> Distribution | None:
    """None of no values. `values` are in order of time."""
    if not len(values):
        return None
    intervals = block_bootstrap(values, _figures) if resample else None
    mean, *percentiles = _figures(values).tolist()
    return Distribution(
        count=len(values),
        mean=mean,
        **dict(zip(NAMED[1:], percentiles, strict=True)),
        max=float(values.max()),
        quantiles=[round(value, 3) for value in np.percentile(values, QUANTILES).tolist()],
        intervals=dict(zip(NAMED, intervals, strict=True)) if intervals else {},
    )


def inter_token_gaps(records: Iterable[Record]) -> tuple[Values, str]:
    """The gaps, and whether they are between tokens or events. Where an event holds n tokens by the server's account,
    the gap before it counts as n gaps of an n-th."""
    gaps: list[float] = []
    counted = True
    for record in records:
        if record.itl_ms and not record.event_tokens:
            counted = False
        counts = record.event_tokens[1:]
        if counts and max(counts) > 1:
            for gap, number in zip(record.itl_ms, counts, strict=True):
                gaps += [gap / number] * number
        else:
            gaps += record.itl_ms
    return np.asarray(gaps, np.float64), "tokens" if counted and gaps else "events"


def _figures(values: Values) -> Values:
    return np.asarray([values.mean(), *np.percentile(values, PERCENTS)])


def _cache(good: Sequence[Record], possible: float) -> Cache:
    told = [each for each in good if each.prompt_tokens and each.cached_tokens is not None]
    foreseen = [each for each in good if each.prompt_tokens and each.predicted_cached_tokens is not None]
    return Cache(
        hit_rate=_share((each.cached_tokens or 0, _prompt(each)) for each in told),
        predicted_hit_rate=_share((each.predicted_cached_tokens or 0, _prompt(each)) for each in foreseen),
        possible_hit_rate=possible,
    )


def _share(parts: Iterable[tuple[int, int]]) -> float | None:
    pairs = list(parts)
    return sum(part for part, _ in pairs) / sum(whole for _, whole in pairs) if pairs else None


def _generator(records: Sequence[Record], shards: Sequence[ShardReport]) -> Generator:
    lags = [each.lag_ms for each in records] or [0.0]
    loop_lags = [lag for shard in shards for lag in shard.loop_lag_ms] or [0.0]
    return Generator(
        lag_p99_ms=float(np.percentile(lags, 99)),
        lag_max_ms=max(lags),
        loop_lag_p99_ms=float(np.percentile(loop_lags, 99)),
        cpu_share_max=max(shard.cpu_share for shard in shards),
        processes=len(shards),
        connections=sum(shard.connections for shard in shards),
        retried=sum(each.retried for each in records),
    )


def _by_label(
    config: RunConfig, measured: Sequence[Record], counted: Sequence[Record], rate: Rate
) -> dict[str, dict[str, float]]:
    labels = sorted({each.label for each in measured})
    found: dict[str, dict[str, float]] = {}
    for label in labels if len(labels) > 1 else ():
        mine = [each for each in measured if each.label == label]
        good = [each for each in mine if each.ok]
        figures = {"requests": float(len(mine)), "failed": float(len(mine) - len(good))}
        for name, values in (("ttft", [each.ttft_ms for each in good]), ("tpot", [each.tpot_ms for each in good])):
            if len(known := _known(values)):
                figures |= {f"{name}_p50_ms": float(np.percentile(known, 50))}
                figures |= {f"{name}_p99_ms": float(np.percentile(known, 99))}
        attainment = sum(meets(each, config) for each in mine) / len(mine)
        per_s = rate(sum(meets(each, config) for each in counted if each.label == label))
        found[label] = figures | {"attainment": attainment, "goodput_per_s": per_s}
    return found


def _tokens_inside(records: Iterable[Record], window_ms: tuple[float, float]) -> float:
    """Answers count as far as they came. Where events with tokens are fewer than tokens, each counts for its share."""
    total = 0.0
    for record in records:
        events = [(_inside(at, window_ms), tokens) for at, tokens in record.token_times_ms()]
        everything = sum(tokens for _, tokens in events)
        inside = sum(tokens for is_inside, tokens in events if is_inside)
        total += inside * record.output_tokens / everything if everything else 0.0
    return total


def _prompt(record: Record) -> int:
    return record.planned_input if record.prompt_tokens is None else record.prompt_tokens


def _first_ms(record: Record) -> float | None:
    return None if record.ttft_ms is None else record.intended_ms + record.ttft_ms


def _end_ms(record: Record) -> float | None:
    return None if record.e2e_ms is None else record.intended_ms + record.e2e_ms


def _inside(at_ms: float | None, window_ms: tuple[float, float]) -> bool:
    return at_ms is not None and window_ms[0] <= at_ms <= window_ms[1]


def _known(values: Iterable[float | None]) -> Values:
    return np.asarray([value for value in values if value is not None], np.float64)
