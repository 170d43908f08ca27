"""A real cluster of plain processes, shared by a module's tests that kill nothing, and what to compare it with."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from process_cluster import ProcessCluster
from reference import Reference
from tiny_model import make_tiny_model


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="session")
def reference(model: Path) -> Reference:
    return Reference(model)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(
    model: Path, valkey_url: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[ProcessCluster]:
    """One prefill worker, one decode worker, and a router that always uses both."""
    logs = tmp_path_factory.mktemp("logs")
    async with ProcessCluster(model, valkey_url, logs, router={"remote_prefill": "always"}) as cluster:
        yield cluster
