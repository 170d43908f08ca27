"""Tables, charts and the page: whole, well-formed, self-contained, and the same figures everywhere."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.arrivals import ClosedLoop, OpenLoop, parse_rate
from loadgen.client.config import RunConfig, ShardReport
from loadgen.client.plan import make_plan
from loadgen.client.records import Record
from loadgen.report.chart_sections import map_section
from loadgen.report.charts import Bar, Line, Stack, bar_chart, line_chart, stacked_chart
from loadgen.report.export import csv_text, json_bytes
from loadgen.report.figures import ALL, LATENCIES, group
from loadgen.report.heat_map import Cell, heat_map
from loadgen.report.intervals import Interval
from loadgen.report.page import report_page
from loadgen.report.phases import PhaseCost, Phases
from loadgen.report.result import RunResult, machine, make_result, read_result
from loadgen.report.svg import log_ticks, ticks
from loadgen.report.terminal import summary_text


class Checker(HTMLParser):
    """Every element is closed in order; collects what would be loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.loads += [value or "" for name, value in attributes if name in ("src", "href", "srcset", "data")]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def a_result(seed: int = 0, rate: float = 20.0, *, name: str = "a", lag_ms: float = 0.1, failing: int = 9) -> RunResult:
    """What a run of six seconds might leave behind; no server was asked."""
    config = RunConfig(
        base_url="http://127.0.0.1:1",
        model="m",
        name=name,
        workload="2*sessions+documents:document=64",
        arrivals=OpenLoop(parse_rate(str(rate), 6.0)),
        duration_s=6.0,
        warmup_s=1.0,
        tail_s=1.0,
        seed=seed,
    )
    plan = make_plan(config)
    records = []
    for each in plan.requests:
        ttft_ms = 30.0 + (each.index * 7 + seed) % 23
        record = Record(
            index=each.index,
            label=each.label,
            intended_ms=each.due_ms,
            lag_ms=lag_ms,
            ttft_ms=ttft_ms,
            e2e_ms=ttft_ms + 90,
            itl_ms=[10.0] * 9,
            output_tokens=10,
            planned_input=each.request.input_length,
            planned_output=10,
            prompt_tokens=each.request.input_length,
            cached_tokens=16,
        )
        if failing and each.index % failing == 0:
            record.failure, record.ttft_ms, record.itl_ms, record.output_tokens = "http_503", None, [], 0
        records.append(record)
    shard = ShardReport(cpu_share=0.2, loop_lag_ms=[0.2], connections=4)
    return make_result(config, plan, records, [shard], "2025-01-31T12:00:00+00:00", machine())


def test_runs_that_differ_in_their_seed_are_repeats() -> None:
    series = group([a_result(0), a_result(1), a_result(2), a_result(0, name="b")])
    assert [(each.label, len(each.results)) for each in series] == [("a", 3), ("b", 1)]
    estimate = series[0].estimate(LATENCIES["ttft"][1])
    assert estimate is not None
    assert estimate.interval is not None
    assert estimate.interval.low <= estimate.value <= estimate.interval.high


def test_series_of_one_name_are_told_apart() -> None:
    labels = [each.label for each in group([a_result(rate=20), a_result(rate=40)])]
    assert labels == ["a, 20/s poisson", "a, 40/s poisson"]
    same = [a_result(), a_result()]
    same[1] = msgspec.structs.replace(same[1], config=msgspec.structs.replace(same[1].config, timeout_s=5.0))
    assert [each.label for each in group(same)] == ["a, 20/s poisson #1", "a, 20/s poisson #2"]


def test_a_generator_that_fell_behind_makes_a_run_invalid_everywhere() -> None:
    late = a_result(lag_ms=30.0)
    assert not late.valid
    assert "fell behind" in late.invalid_because[0]
    assert "INVALID" in summary_text(group([late]))
    page = report_page(group([late]))
    assert "Invalid." in page
    assert "fell behind" in page
    assert next(csv.DictReader(io.StringIO(csv_text(group([late])))))["valid"] == "false"


def test_phases_and_window() -> None:
    summary = a_result().summary
    assert summary.window_s == 4
    assert summary.warmup + summary.measured + summary.tail == summary.sent
    assert min(summary.warmup, summary.measured, summary.tail) > 0


@pytest.mark.parametrize("count", [1, 3, 7])
def test_the_page_is_whole_and_loads_nothing(count: int) -> None:
    results = [a_result(seed, rate=10.0 + 5 * number) for number in range(count) for seed in (0, 1)]
    cells = [Cell("1P", "1D", 3.0), Cell("1P", "2D", None), Cell("2P", "1D", 5.0, "<script>")]
    page = report_page(group(results), "", [("Map", map_section("Goodput", cells, "prefill", "decode", "requests/s"))])
    checker = Checker()
    checker.feed(page)
    assert not checker.open
    assert not checker.loads
    assert not checker.tags & {"script", "link", "img", "iframe", "object", "embed"}
    assert not re.search(r"@import|url\(|@font-face", page)
    assert "prefers-color-scheme: dark" in page
    assert 'name="viewport"' in page
    for svg in re.findall(r"<svg.*?</svg>", page):
        ElementTree.fromstring(svg)
        assert "nan" not in svg
        assert "inf" not in svg


def test_names_are_escaped() -> None:
    page = report_page(group([a_result(name="<b>&\"x'")]), title="<i>")
    assert "&lt;b&gt;" in page
    assert "<h1>&lt;i&gt;</h1>" in page
    assert '<b>&"x' not in page


def test_a_run_without_one_answer_can_be_reported() -> None:
    silent = a_result(failing=1)
    assert silent.summary.latencies == {}
    page = report_page(group([silent]))
    assert "http_503" in page
    summary_text(group([silent]))
    csv_text(group([silent]))


@pytest.mark.parametrize("simulated", [True, False, None])
def test_whose_figures_they_are_is_said(simulated: bool | None) -> None:
    series = group([msgspec.structs.replace(a_result(), simulated=simulated)])
    page, text = report_page(series), summary_text(series)
    assert ("SIMULATED." in page) is ("a (simulated)" in text) is (simulated is True)
    for whole in (page, text):
        assert ("not known whether a model computed" in whole.lower()) is (simulated is None)
    word = {True: "true", False: "false", None: ""}[simulated]
    assert next(csv.DictReader(io.StringIO(csv_text(series))))["simulated"] == word
    assert json.loads(json_bytes(series))[0]["simulated"] is simulated


def test_a_run_with_nothing_between_warm_up_and_tail_is_kept_and_invalid() -> None:
    """Of a closed loop it is not known beforehand how long it lasts."""
    config = RunConfig(
        base_url="http://127.0.0.1:1",
        model="m",
        workload="independent",
        arrivals=ClosedLoop(2),
        num_requests=6,
        warmup_s=5.0,
    )
    plan = make_plan(config)
    records = [
        Record(index=number, intended_ms=100.0 * number, ttft_ms=1.0, e2e_ms=2.0, planned_input=9, planned_output=1)
        for number in range(6)
    ]
    shard = ShardReport(cpu_share=0.2, loop_lag_ms=[0.2], connections=2)
    result = make_result(config, plan, records, [shard], "2025-01-31T12:00:00+00:00", machine())
    assert (result.valid, result.summary.sent, result.summary.warmup, result.summary.measured) == (False, 6, 6, 0)
    assert any("no request was measured" in reason for reason in result.invalid_because)
    report_page(group([result]))
    csv_text(group([result]))


def test_balance_counts_workers_that_did_nothing_and_is_left_out_where_their_number_is_not_known() -> None:
    cost = PhaseCost(mean=1.0, p50=1.0, p99=1.0)
    found = Phases(
        remote_share=0.0,
        queue=cost,
        prefill=cost,
        transfer=None,
        exposed=None,
        decode=cost,
        transfer_bytes=0,
        prompt_tokens={"d1": 100},
        output_tokens={"d1": 100},
    )
    known = msgspec.structs.replace(found, num_prompt_workers=1, num_output_workers=4)
    for phases, prompt, output in ((found, "", ""), (known, "1", "0.25")):
        result = a_result()
        result = msgspec.structs.replace(result, summary=msgspec.structs.replace(result.summary, phases=phases))
        row = next(csv.DictReader(io.StringIO(csv_text(group([result])))))
        assert (row["balance_prompt"], row["balance_output"]) == (prompt, output)


def test_nothing_to_report() -> None:
    with pytest.raises(ValueError, match="no run"):
        report_page([])


def test_csv_and_json_say_the_same() -> None:
    series = group([a_result(0), a_result(1)])
    rows = list(csv.DictReader(io.StringIO(csv_text(series))))
    exported = json.loads(json_bytes(series))
    assert set(exported[0]["figures"]) <= {figure.key for figure in ALL} <= set(rows[0])
    mean = sum(float(row["ttft_p99_ms"]) for row in rows) / 2
    assert exported[0]["figures"]["ttft_p99_ms"]["value"] == pytest.approx(mean, rel=1e-4)
    assert exported[0]["runs"] == 2


def test_a_result_survives_its_file(tmp_path: Path) -> None:
    result, path = a_result(), tmp_path / "a.run.json"
    path.write_bytes(msgspec.json.encode(result))
    assert read_result(path) == result
    path.write_text('{"schema": "x"}')
    with pytest.raises(ValueError, match=r"a\.run\.json"):
        read_result(path)


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_ticks_are_inside_and_few(low: float, span: float) -> None:
    made = ticks(low, low + span)
    assert 2 <= len(made) <= 8
    slack = 1e-6 * max(abs(low), span)
    assert low - slack <= made[0] <= made[-1] <= low + span + slack


@given(st.floats(1e-2, 1e5), st.floats(1.5, 1e5))
def test_log_ticks_are_inside(low: float, factor: float) -> None:
    made = log_ticks(low, low * factor)
    assert all(low <= tick <= low * factor for tick in made)
    assert made == sorted(made)


values = st.floats(-1e3, 1e7, allow_nan=False)


@given(st.lists(st.tuples(values, st.none() | values), max_size=30), st.booleans())
def test_line_charts_of_anything_are_well_formed(points: list[tuple[float, float | None]], percent: bool) -> None:
    chart = line_chart("t", [Line("<a> & b", points, 3)], "ms", "", percent=percent)
    if any(y is not None for _, y in points):
        root = ElementTree.fromstring(chart)
        numbers = [float(place) for node in root.iter() for place in (node.get("cx"), node.get("x1")) if place]
        assert all(math.isfinite(number) and 0 <= number <= 400 for number in numbers)
    else:
        assert chart == ""


def test_the_best_cell_is_framed_and_the_unmeasured_hollow() -> None:
    cells = [Cell("1P", "1D", 3.0), Cell("1P", "2D", 8.0), Cell("2P", "1D", None)]
    best = heat_map("t", cells, "prefill", "decode", "requests/s")
    assert re.findall(r"<title>([^<]*best[^<]*)</title>", best) == ["1P, 2D: 8 (best)"]
    assert best.count('class="cell none"') == 1
    least = heat_map("t", cells, "prefill", "decode", "requests/s", larger_is_better=False)
    assert re.findall(r"<title>([^<]*best[^<]*)</title>", least) == ["1P, 1D: 3 (best)"]
    ElementTree.fromstring(heat_map("t", [Cell("1P", "1D", None)], "p", "d", "u"))


def test_a_whisker_far_longer_than_what_it_belongs_to_is_cut() -> None:
    line = Line("a", [(1.0, 10.0), (2.0, 12.0)], 0, intervals=[Interval(9, 11), Interval(0, 500)])
    chart = line_chart("t", [line], "load, requests/s", "ms", from_zero=True)
    caps = [path.count("h6") for path in re.findall(r'class="whisker[^"]*" d="([^"]*)"', chart)]
    assert caps == [2, 1]
    assert max(float(number) for number in re.findall(r'text-anchor="end">(\d+)<', chart)) <= 20
    assert "95 % interval 0 to 500" in chart


def test_bars_of_phases_sum_up_to_the_whole() -> None:
    chart = stacked_chart("t", [Stack("a", [("Queue", 40.0, 0), ("Decode", 1160.0, 3)])], "ms")
    ElementTree.fromstring(chart)
    assert "1,200 ms" in chart
    widths = [float(width) for width in re.findall(r'<rect[^>]* width="([\d.]+)"', chart)]
    assert widths[0] / sum(widths) == pytest.approx(40 / 1200, rel=0.02)


def test_bars_have_whiskers_where_there_is_an_interval() -> None:
    chart = bar_chart("t", [Bar("a", 3, Interval(2, 5), 0), Bar("b" * 90, 0, None, 9)], "/s")
    ElementTree.fromstring(chart)
    assert chart.count("whisker") == 1
