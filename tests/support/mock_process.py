"""The mock server in a process of its own, started for a test and stopped after it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

SCRIPT = Path(__file__).with_name("mock_openai.py")


class MockServer:
    def __init__(self, base_url: str) -> None:
        self.base_url = base_url

    def seen(self) -> dict[str, Any]:
        """What arrived there, see `mock_openai.Seen.report`."""
        answer: dict[str, Any] = httpx.get(f"{self.base_url}/seen", trust_env=False).json()
        return answer


@contextmanager
def mock_server(**config: Any) -> Iterator[MockServer]:
    """`config`: fields of `mock_openai.Mock`."""
    process = subprocess.Popen([sys.executable, str(SCRIPT), json.dumps(config)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        port = json.loads(process.stdout.readline())["port"]
        yield MockServer(f"http://127.0.0.1:{port}")
    finally:
        process.terminate()
        process.wait(timeout=10)
        process.stdout.close()
