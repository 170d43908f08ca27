"""What talks to Redis is tested twice: on the embedded Valkey, and on a Redis >= 7 where there is one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from redis_server import PROGRAMS, RedisServer


@pytest.fixture(scope="session", params=list(PROGRAMS))
def server_program(request: pytest.FixtureRequest) -> Path:
    program, why_not = PROGRAMS[request.param]()
    if program is None:
        pytest.skip(why_not)
    return program


@pytest.fixture(scope="session")
def valkey_url(server_program: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server shared by the session: use `cluster` to keep tests apart."""
    server = RedisServer(server_program, tmp_path_factory.mktemp("redis"))
    server.start()
    yield server.url
    server.stop()


@pytest.fixture
def own_valkey(server_program: Path, tmp_path: Path) -> Iterator[RedisServer]:
    """A server of the test's own, to flush, stop and start again."""
    server = RedisServer(server_program, tmp_path)
    server.start()
    yield server
    server.stop()
