"""The commands, as functions: files, exit status, and what is not in the files."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from cyclopts import App
from mock_process import mock_server

from loadgen.client.cli import INVALID, report, run


def test_run_and_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    with mock_server(itl_ms=1) as server:
        status = run(
            server.base_url,
            model="mock",
            workload="independent:input=20,output=4",
            rate="100",
            requests=40,
            repeats=2,
            name="mine",
            api_key="very-secret",
            header=["x-tenant: also-secret"],
            lag_limit_ms=60_000,
            out=out,
        )
    assert status == 0
    names = {path.name for path in out.iterdir()}
    assert names == {
        *("mine-0.run.json", "mine-0.requests.jsonl", "mine-1.run.json", "mine-1.requests.jsonl"),
        *("report.html", "summary.csv", "summary.json"),
    }
    content = "".join(path.read_text(encoding="utf-8") for path in out.iterdir())
    assert "very-secret" not in content
    assert "also-secret" not in content
    assert len((out / "mine-1.requests.jsonl").read_text().splitlines()) == 40
    assert [row["measured"] for row in csv.DictReader((out / "summary.csv").open())] == ["40", "40"]
    assert "2 runs" in capsys.readouterr().out

    page = tmp_path / "both.html"
    assert report([out, out / "mine-0.run.json"], out=page, title="Both") == 0
    assert "<h1>Both</h1>" in page.read_text(encoding="utf-8")


def test_a_run_that_cannot_be_believed_has_a_status_of_its_own(tmp_path: Path) -> None:
    with mock_server() as server:
        status = run(server.base_url, model="mock", rate="100", requests=5, lag_limit_ms=1e-6, out=tmp_path)
    assert status == INVALID
    assert json.loads((tmp_path / "run-0.run.json").read_text())["valid"] is False


def test_flags_as_they_are_typed() -> None:
    app = App(result_action="return_value")
    for name in ("run", "report"):
        app.command(f"loadgen.client.cli:{name}", name=name)
    typed = "run http://h:1 --model m --rate 1..9 --duration 5 --no-ignore-eos --header a:b --header c:d --prompt text"
    _, bound, _ = app.parse_args(typed.split())
    flags = bound.arguments
    assert (flags["url"], flags["rate"], flags["duration"], flags["prompt"]) == ("http://h:1", "1..9", 5.0, "text")
    assert flags["ignore_eos"] is False
    assert list(flags["header"]) == ["a:b", "c:d"]
    _, bound, _ = app.parse_args(["report", "a.run.json", "folder", "--out", "r.html"])
    assert [str(path) for path in bound.arguments["results"]] == ["a.run.json", "folder"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({}, "one of --rate"),
        ({"rate": "3", "concurrency": 2}, "one of --rate"),
        ({"rate": "3"}, "how many requests"),
        ({"rate": "3", "requests": 2, "extra_body": "[1]"}, "extra_body"),
        ({"rate": "3", "requests": 2, "workload": "mooncake:/nowhere"}, "nowhere"),
        ({"rate": "3", "requests": 2, "header": ["a: b\r\nc: d"]}, "header"),
    ],
)
def test_wrong_flags(flags: dict[str, object], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("http://127.0.0.1:1", model="m", out=tmp_path, **flags) == 1  # type: ignore[arg-type]
    assert said in capsys.readouterr().err


def test_an_address_that_is_none(tmp_path: Path) -> None:
    assert run("localhost:8000", model="m", rate="3", requests=1, out=tmp_path) == 1


def test_a_report_of_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report([tmp_path], out=tmp_path / "r.html") == 1
    assert "no run" in capsys.readouterr().err
