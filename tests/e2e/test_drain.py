"""`make chaos-drain` at a small count: every kind of operation once, and no client sees an error."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 580
OPERATIONS = 9  # one cycle


@pytest.mark.slow
def test_operations_under_load_cost_no_client_an_error() -> None:
    command = [sys.executable, "tests/chaos/drain.py", "--operations", str(OPERATIONS)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    result = json.loads(done.stdout.splitlines()[-1])
    assert (done.returncode, result["errors"]) == (0, []), done.stderr
    assert (result["operations"], result["client_errors"], result["orphans"]) == (OPERATIONS, 0, 0)
    assert len(result["by_operation"]) == 6
    assert result["requests"] > 4 * OPERATIONS  # there was load
