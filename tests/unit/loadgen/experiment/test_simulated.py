"""A whole experiment in virtual time, as the command runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from experiments import TEXT

from loadgen.cli import main
from loadgen.experiment.cli import run_experiment

SIM = """
[sim]
kv_bytes_per_token = 1024
kv_cache_bytes = 4_194_304
wire_bytes_per_s = 1e9
fitted = { prefill_c0_ms = 5.0, prefill_c1_ms_per_token = 0.2, prefill_c2_ms_per_token2 = 0.0, decode_c0_ms = 6.0, \
decode_c1_ms_per_row = 0.5, decode_c2_ms_per_token = 0.0 }
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(TEXT + SIM, encoding="utf-8")
    return path


def test_from_file_to_report(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as ended:
        raise SystemExit(main(["run", str(file), "--backend", "sim", "--out", str(out)]))
    assert ended.value.code == 0
    assert {path.name for path in out.iterdir()} == {
        *("experiment.json", "runs", "report.html", "summary.csv", "summary.json")
    }
    content = json.loads((out / "summary.json").read_text())
    cells = {
        (cell["cell"]["prefill"], cell["cell"]["decode"], cell["cell"]["input_tokens"], cell["cell"]["rate"]): cell
        for cell in content["cells"]
    }
    assert len(cells) == 16
    figures = cells[1, 1, 64, 20.0]["figures"]
    assert 17.8 < figures["ttft_p50_ms"]["value"] < 60  # 5 + 0.2 · 64 ms, a queue at times, two hops
    assert figures["attainment"]["value"] > 0.9
    captured = capsys.readouterr()
    assert "(simulated)" in captured.out
    assert "run 48 of 48" in captured.err
    assert content["simulated"] is True
    runs = [json.loads(path.read_text()) for path in (out / "runs").glob("*-s1.json")]
    assert len(runs) == 16
    assert all(run["result"]["simulated"] for run in runs)
    assert "SIMULATED" in (out / "report.html").read_text(encoding="utf-8")


def test_the_same_seed_gives_the_same_figures(file: Path, tmp_path: Path) -> None:
    outs = [tmp_path / name for name in ("a", "b")]
    for out in outs:
        assert run_experiment(file, out=out, backend="sim") == 0
    figures = [[cell["figures"] for cell in json.loads((out / "summary.json").read_text())["cells"]] for out in outs]
    assert figures[0] == figures[1]


def test_closed_loops_end_too(file: Path, tmp_path: Path) -> None:
    text = file.read_text().replace("rate = [20.0, 40.0]", "concurrency = [3]").replace("[1, 2, 3]", "[1]", 1)
    file.write_text(text.replace("duration_s = 0.95", "duration_s = 9\nrequests = 20"))
    assert run_experiment(file, out=tmp_path / "out", backend="sim") == 0
    cells = json.loads((tmp_path / "out" / "summary.json").read_text())["cells"]
    assert all(cell["figures"]["measured"]["value"] == 20 for cell in cells)


def test_a_changed_file_is_refused_and_a_wrong_one_said(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_experiment(file, out=tmp_path / "out", backend="sim") == 0
    file.write_text(file.read_text().replace("duration_s = 0.95", "duration_s = 0.9"))
    assert run_experiment(file, out=tmp_path / "out", backend="sim") == 1
    assert "begun with another arrivals" in capsys.readouterr().err
    file.write_text("name = 'x'")
    assert run_experiment(file, out=tmp_path / "out2") == 1
    assert "sweep" in capsys.readouterr().err
