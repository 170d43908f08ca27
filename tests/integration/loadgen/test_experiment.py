"""A whole experiment on a real cluster of a tiny model: started, scaled between shapes, measured, reported, gone."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

from tiny_model import make_tiny_model

ROOT = Path(__file__).resolve().parents[3]
EXPERIMENT = """
name = "Tiny"
seeds = [1]
[cluster]
model = {model}
worker_options = {{ kv_cache_bytes = 8_388_608 }}
[sweep]
mode = ["disaggregated", "colocated"]
remote_prefill = ["prefer"]
input_tokens = [48]
output_tokens = [4]
rate = [8.0]
[workload]
vocabulary_size = 250
[arrivals]
duration_s = 1.5
lag_limit_ms = 5_000
settle_requests = 1
[slo]
ttft_ms = 20_000
tpot_ms = 5_000
"""


def test_pools_are_started_scaled_and_measured(tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path / "tiny")
    file, out = tmp_path / "tiny.toml", tmp_path / "out"
    file.write_text(EXPERIMENT.format(model=json.dumps(str(model))))
    environment = os.environ | {"HOME": str(tmp_path), "XDG_CACHE_HOME": "", "XDG_STATE_HOME": ""}
    done = subprocess.run(
        [sys.executable, "-m", "loadgen", "run", str(file), "--out", str(out)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("starting the cluster") == 1  # the second shape was scaled to
    rows = {row["mode"]: row for row in csv.DictReader((out / "summary.csv").open())}
    assert set(rows) == {"disaggregated", "colocated"}
    for row in rows.values():
        assert row["failed"] == "0"
        assert row["attainment"] == "1"
    assert float(rows["disaggregated"]["remote_share"]) == 1.0
    assert float(rows["disaggregated"]["exposed_mean_ms"]) > 0
    assert rows["disaggregated"]["prefill_mean_ms"] != ""
    assert (rows["colocated"]["remote_share"], rows["colocated"]["exposed_mean_ms"]) == ("0", "")
    content = json.loads((out / "summary.json").read_text())
    assert [use for cell in content["cells"] for use in cell["use"] if use is not None]
    assert "<h2>Disaggregated or colocated</h2>" in (out / "report.html").read_text()
    assert "nothing is left behind" in (out / "cluster" / "cluster-1.log").read_text()
    assert list((tmp_path / ".local/state/diptych/running").iterdir()) == []
