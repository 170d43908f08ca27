"""The description of the cluster on Kubernetes against the pods that are to run it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from launch_files import (
    KUBERAY,
    KUBERAY_REDIS_URL,
    document,
    environment,
    kuberay_config,
    kuberay_object,
    pod_specs,
)

from deploy.cli import app
from deploy.cluster_config import ClusterConfig
from deploy.hosted import STOP_SLACK_S
from deploy.placing import Needs, Node, Placed, choose
from deploy.wanted import POOLS


@pytest.fixture
def cluster() -> dict[str, Any]:
    return kuberay_object("RayCluster", "diptych")


@pytest.fixture
def config() -> ClusterConfig:
    return kuberay_config()


def test_pods_are_given_longer_than_a_drain_takes(cluster: dict[str, Any], config: ClusterConfig) -> None:
    drain_s = config.limits.drain_timeout_s + STOP_SLACK_S
    pods = pod_specs(cluster)
    for name in ("prefill", "decode"):
        (container,) = pods[name]["containers"]
        ray_waits_s = float(environment(container)["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
        assert drain_s < ray_waits_s < pods[name]["terminationGracePeriodSeconds"]
    (head,) = pods["head"]["containers"]
    down_s = 2 * config.limits.drain_timeout_s + 20  # what `diptych up` gives its cluster (deploy/cluster.py)
    (*_, command) = head["lifecycle"]["preStop"]["exec"]["command"]
    patience_s = float(command.split("--timeout ")[1].split()[0])
    after_s = float(environment(head)["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
    assert command.startswith("diptych down ")
    assert down_s < patience_s
    assert patience_s + after_s < pods["head"]["terminationGracePeriodSeconds"]
    assert down_s < float(environment(head)["RAY_JOB_STOP_WAIT_TIME_S"])


def test_every_worker_finds_a_pod_that_has_what_its_pool_asks_for(
    cluster: dict[str, Any], config: ClusterConfig
) -> None:
    spec = cluster["spec"]
    nodes = [Node("head", numbers(spec["headGroupSpec"]["resources"]), {})]
    for group in spec["workerGroupSpecs"]:
        name, resources = group["groupName"], numbers(group["resources"])
        nodes += [Node(f"{name}-{index}", resources, group["labels"]) for index in range(group["minReplicas"])]
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        assert float(limits["cpu"]) == resources["CPU"]  # Ray gives out what Kubernetes does
    placed: list[Placed] = []
    for kind in POOLS:
        pool = config.pool(kind)
        for _ in range(pool.count):
            node = choose(Needs(kind, pool.booked, pool.labels, pool.placement), nodes, placed)
            assert node.startswith(f"{kind}-")
            placed.append(Placed(kind, node, pool.booked))
    assert len({process.node_id for process in placed}) == len(placed)  # one worker a pod


def numbers(resources: dict[str, str]) -> dict[str, float]:
    return {name: float(amount) for name, amount in resources.items()}


def test_the_memory_of_a_pod_holds_its_cache(cluster: dict[str, Any], config: ClusterConfig) -> None:
    for kind in POOLS:
        limit = pod_specs(cluster)[kind]["containers"][0]["resources"]["limits"]["memory"]
        assert limit.endswith("Gi")
        assert config.pool(kind).options["kv_cache_bytes"] < int(limit[:-2]) * 2**30 / 2


def test_the_job_starts_the_cluster_that_is_described(cluster: dict[str, Any], config: ClusterConfig) -> None:
    command = kuberay_object("RayJob", "diptych")["spec"]["entrypoint"].split()
    assert command[0] == "diptych"
    function, bound, _ = app.parse_args(command[1:], exit_on_error=False, print_error=False)
    assert function.__name__ == "up"
    (head,) = pod_specs(cluster)["head"]["containers"]
    (mounted,) = (mount["mountPath"] for mount in head["volumeMounts"] if mount["name"] == "config")
    assert bound.arguments["config"] == Path(mounted) / "cluster.toml"
    assert bound.arguments["ray_address"] == "auto"
    generated = document(KUBERAY / "kustomization.yaml")["configMapGenerator"]
    assert generated == [{"name": "diptych-cluster", "files": ["cluster.toml"]}]


def test_the_address_of_valkey_reaches_the_job_by_the_environment(
    cluster: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    (head,) = pod_specs(cluster)["head"]["containers"]
    names = [each["name"] for each in head["env"]]
    assert names.index("VALKEY_PASSWORD") < names.index("DIPTYCH_REDIS_URL")  # Kubernetes puts in what came before
    url = environment(head)["DIPTYCH_REDIS_URL"].replace("$(VALKEY_PASSWORD)", "secret")
    assert url == KUBERAY_REDIS_URL
    service = kuberay_object("Service", "diptych-valkey")
    assert url.partition("@")[2] == f"{service['metadata']['name']}:{service['spec']['ports'][0]['port']}/0"
    monkeypatch.setenv("DIPTYCH_REDIS_URL", url)
    _, bound, _ = app.parse_args(["up"], exit_on_error=False, print_error=False)
    assert bound.arguments["redis_url"] == url
