"""What is refused before anything starts."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from deploy.cluster_config import ClusterConfig, RouterPool
from deploy.model_store import ModelError
from deploy.prepare import prepare
from deploy.progress import Progress
from deploy.running import Running, RunningFiles


def test_two_clusters_of_one_name_are_one_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    me = psutil.Process()
    first = Running(name="blue", admin_url="", admin_key="", pid=me.pid, created_at_s=me.create_time())
    RunningFiles({"XDG_STATE_HOME": str(tmp_path)}).write(first)

    def start(name: str) -> None:
        with ExitStack() as stack:
            config = ClusterConfig(model="/nowhere", name=name, router=RouterPool(http_port=0))
            prepare(config, "", tmp_path, stack, Progress())

    with pytest.raises(ValueError, match=r"'blue' runs on this machine already .* another name with --cluster"):
        start("blue")
    with pytest.raises(ModelError, match="is no folder"):  # goes on
        start("green")
