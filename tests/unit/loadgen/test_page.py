"""What a reader of a page sees: it loads nothing, every chart says what it shows, text is legible in both schemes."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Literal

import pytest
from colours import Colour, contrast, mix, rgb
from experiments import experiment, runs_of
from headless_browser import Browser, find_browser

from loadgen.experiment.analysis import measured
from loadgen.experiment.page import experiment_page
from loadgen.experiment.results import State
from loadgen.report.heat_map import DEEPEST, FAINTEST
from loadgen.report.page import report_page
from loadgen.report.style import CSS

MADE = experiment()
CELLS = measured(runs_of(MADE, lambda cell: 30.0 if cell.prefill else 500.0))
SERIES = [each.series for each in CELLS]
PAGES = {
    "experiment": experiment_page(State(experiment=MADE, salt=1, started_at_s=1.7e9), CELLS, 99),
    "run": report_page(SERIES[:1]),
    "several": report_page(SERIES[:5]),
}
TEXT_CONTRAST, SHAPE_CONTRAST = 4.5, 3.0  # WCAG 2.2, 1.4.3 (AA) and 1.4.11
SCHEMES = dict(zip(("light", "dark"), re.findall(r":root \{(.*?)\}", CSS, re.DOTALL), strict=True))
UNIT = re.compile(r"\b(ms|s|tokens/s|requests|requests/s|workers|share)\b")
LOADING = {"script", "link", "img", "iframe", "object", "embed", "base", "audio", "video", "source", "use", "image"}


class Reader(HTMLParser):
    """Collects what a page would load, and of each chart its heading and its texts by class."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.tags: set[str] = set()
        self.viewport = ""
        self.charts: list[dict[str, str]] = []
        self.num_tables = self.num_tables_in_boxes = 0
        self._heading = ""
        self._open: list[tuple[str, str]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attributes}
        self.tags.add(tag)
        self.loads += [found[name] for name in ("src", "href", "srcset", "data", "xlink:href") if name in found]
        if tag == "meta" and found.get("name") == "viewport":
            self.viewport = found["content"]
        if tag == "svg":
            self.charts.append({"heading": self._heading, "label": found.get("aria-label", "")})
        if tag == "table":
            self.num_tables += 1
            self.num_tables_in_boxes += any("scroll" in kind for _, kind in self._open)
        if tag not in ("meta", "br"):
            self._open.append((tag, found.get("class", "")))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop()[0] == tag

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_data(self, data: str) -> None:
        tag, kind = self._open[-1] if self._open else ("", "")
        if tag == "h3":
            self._heading = data
        if tag == "text":
            self.charts[-1][kind or "number"] = data


@pytest.mark.parametrize("name", PAGES)
def test_a_page_needs_nothing_but_itself(name: str) -> None:
    page = PAGES[name]
    reader = Reader(page)
    assert reader.loads == []
    assert not reader.tags & LOADING
    without_names = re.sub(r"http://www\.w3\.org/2000/svg|http://127\.0\.0\.1(:\d+)?", "", page)
    assert not re.findall(r"@import|@font-face|url\(|https?://", without_names)
    assert "width=device-width" in reader.viewport
    assert "@media (prefers-color-scheme: dark)" in page
    assert "color-scheme: light dark" in page
    assert reader.num_tables == reader.num_tables_in_boxes > 1


@pytest.mark.parametrize("name", PAGES)
def test_every_chart_says_what_it_shows_and_in_which_unit(name: str) -> None:
    charts = Reader(PAGES[name]).charts
    assert len(charts) > 5
    for chart in charts:
        assert chart["heading"]
        assert chart["label"]
        if "value" in chart:  # bars: their values have the unit behind them
            assert re.search(r"(ms|/s|%)$", chart["value"]), chart
        else:
            assert UNIT.search(chart["x-title"]), chart
            assert UNIT.search(chart["y-title"]), chart


def test_both_schemes_define_all_colours() -> None:
    assert set(palette("light")) == set(palette("dark"))
    used = set(re.findall(r"var\(--([a-z0-9-]+)\)", CSS)) - {"c", "share"}
    assert used <= set(palette("light"))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_text_and_shapes_stand_out(scheme: str) -> None:
    colours = palette(scheme)
    card = colours["card"]
    pays = mix(colours["good"], card, 0.18)
    assert "td.pays { background: color-mix(in oklab, var(--good) 18%, var(--card)); }" in CSS
    for ground in (card, colours["page"], colours["bad-wash"], pays):
        assert min(contrast(colours[ink], ground) for ink in ("ink", "soft")) >= TEXT_CONTRAST
    for percent in range(FAINTEST, DEEPEST + 1, 4):
        assert contrast(colours["ink"], mix(colours["heat"], card, percent / 100)) >= TEXT_CONTRAST, percent
    for name in ("c0", "c1", "c2", "c3", "c4", "c5", "good", "bad"):
        assert contrast(colours[name], card) >= SHAPE_CONTRAST, name


def test_contrast_and_mixture_are_as_defined() -> None:
    assert contrast(rgb("#000000"), rgb("#ffffff")) == pytest.approx(21)
    assert contrast(rgb("#777777"), rgb("#ffffff")) == pytest.approx(4.48, abs=0.01)
    red = rgb("#ff0000")
    assert mix(red, red, 0.3) == pytest.approx(red, abs=1e-3)
    grey = mix(rgb("#ffffff"), rgb("#000000"), 0.5)  # lightness 0.5 is a linear 0.125
    assert grey == pytest.approx((0.3886, 0.3886, 0.3886), abs=1e-3)


# texts of charts that leave their picture by more than 4 pixels, or lie on one another
MISPLACED = """
(() => [...document.querySelectorAll('svg')].flatMap(svg => {
  const frame = svg.getBoundingClientRect();
  const texts = [...svg.querySelectorAll('text')].map(each => [each.textContent, each.getBoundingClientRect()]);
  const out = texts.filter(([, at]) => at.left < frame.left - 4 || at.right > frame.right + 4);
  const over = texts.filter(([, a], i) => texts.slice(i + 1).some(([, b]) =>
    a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 4 && b.top < a.bottom - 4));
  return [...out, ...over].map(([text]) => svg.getAttribute('aria-label') + ': ' + text);
}))()
"""


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_in_a_browser_tables_scroll_and_the_page_does_not(
    width: int, scheme: Literal["light", "dark"], tmp_path: Path
) -> None:
    program = find_browser()
    if program is None:
        pytest.skip("no Chromium here")
    with Browser(program, tmp_path / "profile") as browser:
        for name, page in PAGES.items():
            path = tmp_path / f"{name}.html"
            path.write_text(page, encoding="utf-8")
            browser.show(path, width, scheme)
            browser.value("document.querySelectorAll('details').forEach(each => each.open = true)")
            assert browser.value("innerWidth") == width
            assert browser.value("document.documentElement.scrollWidth") <= width
            ground = str(browser.value("getComputedStyle(document.body).backgroundColor"))
            shown = [int(part) / 255 for part in re.findall(r"\d+", ground)[:3]]
            assert shown == pytest.approx(list(palette(scheme)["page"]), abs=0.01)
            assert browser.value(MISPLACED) == []
            assert browser.screenshot().startswith(b"\x89PNG")


def palette(scheme: str) -> dict[str, Colour]:
    return {name: rgb(value) for name, value in re.findall(r"--([a-z0-9-]+): (#[0-9a-f]{6})", SCHEMES[scheme])}
