"""The files of Ray's cluster launcher: as Ray itself reads them, and against what the cluster asks for."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
from launch_files import DEPLOY, ROOT, document
from ray.autoscaler._private.util import prepare_config, validate_config

from deploy.cluster_config import ClusterConfig
from deploy.cluster_file import read_cluster
from deploy.placing import Needs, Node, Placed, choose
from deploy.wanted import POOLS

FILES = ["ray-cluster.yaml", "ray-cluster-local.yaml"]


@pytest.fixture(params=FILES)
def described(request: pytest.FixtureRequest) -> dict[str, Any]:
    return document(DEPLOY / request.param)


@pytest.fixture
def config() -> ClusterConfig:
    return read_cluster(DEPLOY / "examples/ray-cluster.toml", {}, "")


def test_ray_accepts_it(described: dict[str, Any]) -> None:
    prepared = prepare_config(described)
    validate_config(prepared)
    assert prepared["head_node_type"] in prepared["available_node_types"]


def test_ray_refuses_what_it_does_not_know(described: dict[str, Any]) -> None:
    prepared = prepare_config(described)
    with pytest.raises(Exception, match="max_worker"):
        validate_config(prepared | {"max_worker": 3})


def starts(described: dict[str, Any]) -> list[str]:
    commands = [*described["head_start_ray_commands"], *described["worker_start_ray_commands"]]
    return [command for command in commands if "ray start" in command]


def test_every_node_starts_with_a_token_and_without_statistics(described: dict[str, Any]) -> None:
    assert len(starts(described)) == 2
    for command in starts(described):
        before, _, _ = command.partition("ray start")
        assert "RAY_AUTH_MODE=token" in before
        assert "RAY_USAGE_STATS_ENABLED=0" in before
    (token,) = [theirs for theirs in described["file_mounts"] if theirs.endswith("/.ray/auth_token")]
    assert described["file_mounts"][token] == "~/.ray/auth_token"


def test_the_dashboard_stays_on_loopback(described: dict[str, Any]) -> None:
    head, _ = starts(described)
    assert "--dashboard-host=127.0.0.1" in head
    assert "0.0.0.0" not in json.dumps(described)


def test_stopping_the_job_waits_longer_than_a_drain(described: dict[str, Any], config: ClusterConfig) -> None:
    head, _ = starts(described)
    (patience_s,) = re.findall(r"RAY_JOB_STOP_WAIT_TIME_S=(\d+)", head)
    assert 2 * config.limits.drain_timeout_s + 20 < float(patience_s)


def test_what_is_installed_is_there(described: dict[str, Any]) -> None:
    (install,) = [command for command in described["setup_commands"] if "ray[default]" in command]
    files = re.findall(r"-c (\S+)", install)
    assert files == ["constraints.txt", "deploy/docker/ray-default.txt"]
    assert all((ROOT / file).is_file() for file in files)
    assert any("pip install -q torch==" in command for command in described["setup_commands"])


def find_room(config: ClusterConfig, nodes: list[Node]) -> list[Placed]:
    """Where every worker of the description goes."""
    placed: list[Placed] = []
    for kind in POOLS:
        pool = config.pool(kind)
        for _ in range(pool.count):
            node = choose(Needs(kind, pool.booked, pool.labels, pool.placement), nodes, placed)
            placed.append(Placed(kind, node, pool.booked))
    return placed


def test_every_worker_finds_a_machine_that_has_what_its_pool_asks_for(config: ClusterConfig) -> None:
    types = document(DEPLOY / "ray-cluster.yaml")["available_node_types"]
    assert types["head"]["resources"] == {"CPU": 0}
    nodes = [Node("head", types["head"]["resources"], {})]
    for name in ("prefill", "decode"):
        each = types[name]
        nodes += [Node(f"{name}-{index}", each["resources"], each["labels"]) for index in range(each["min_workers"])]
    placed = find_room(config, nodes)
    assert [process.node_id.partition("-")[0] for process in placed] == [process.kind.value for process in placed]
    assert len({process.node_id for process in placed}) == len(placed)


def test_a_machine_of_ones_own_says_itself_what_it_is_for(tmp_path: Path, config: ClusterConfig) -> None:
    """The start command, run with a `ray` that only writes down how it was called."""
    described = document(DEPLOY / "ray-cluster-local.yaml")
    _, command = described["worker_start_ray_commands"]
    fake = tmp_path / "ray"
    fake.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {tmp_path}/called\n', encoding="utf-8")
    fake.chmod(0o755)
    nodes = []
    for role in ("prefill", "decode"):
        (tmp_path / ".diptych-role").write_text(f"{role}\n", encoding="utf-8")
        environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "HOME": str(tmp_path), "RAY_HEAD_IP": "192.0.2.10"}
        subprocess.run(["/bin/bash", "-c", command], env=environment, check=True, capture_output=True)
        called = (tmp_path / "called").read_text(encoding="utf-8").split("\n")
        assert called[:2] == ["start", "--address=192.0.2.10:6379"]
        (label,) = [word.removeprefix("--labels=") for word in called if word.startswith("--labels=")]
        (resources,) = [json.loads(word.partition("=")[2]) for word in called if word.startswith("--resources=")]
        found = {"CPU": 8.0, "GPU": 1.0, **resources}  # what Ray finds on the machine, and what it is told
        nodes += [Node(f"{role}-{index}", found, dict([label.split("=")])) for index in range(4)]
    placed = find_room(config, nodes)
    assert [process.node_id.partition("-")[0] for process in placed] == [process.kind.value for process in placed]


def test_the_head_of_ones_own_runs_no_worker() -> None:
    head, _ = starts(document(DEPLOY / "ray-cluster-local.yaml"))
    assert {"--num-cpus=0", "--num-gpus=0"} <= set(shlex.split(head.partition("ray start")[2]))
