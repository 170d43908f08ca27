"""The files for Kubernetes: against published schemas, against each other, and what they let nobody do."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from launch_files import (
    DEPLOY,
    KUBERAY,
    KUBERAY_FILES,
    KUBERAY_OBJECTS,
    document,
    documents,
    documents_of,
    kuberay_config,
    kuberay_object,
    kubernetes_errors,
    pod_specs,
)

from deploy.cluster_config import ClusterConfig

PODS = [
    pytest.param(pod, id=f"{thing['kind']}-{name}")
    for thing in KUBERAY_OBJECTS
    for name, pod in pod_specs(thing).items()
]


@pytest.fixture
def cluster() -> dict[str, Any]:
    return kuberay_object("RayCluster", "diptych")


@pytest.fixture
def config() -> ClusterConfig:
    return kuberay_config()


@pytest.mark.parametrize("path", KUBERAY_FILES, ids=lambda path: path.name)
def test_every_object_fits_its_published_schema(path: Path) -> None:
    for thing in documents(path):
        assert kubernetes_errors(thing) == []


def test_the_schemas_refuse_what_is_not_there(cluster: dict[str, Any]) -> None:
    cluster["spec"]["authOptions"] = {"mode": "tokens"}
    cluster["spec"]["headGroupSpec"]["template"]["spec"]["terminationGraceSeconds"] = 1
    said = "\n".join(kubernetes_errors(cluster))
    assert "'tokens' is not one of" in said
    assert "terminationGraceSeconds" in said


def test_kuberay_accepts_it_too(cluster: dict[str, Any]) -> None:
    """What its operator checks beyond the schema: ValidateRayClusterSpec, ValidateRayJobSpec (KubeRay 1.7.0)."""
    spec, job = cluster["spec"], kuberay_object("RayJob", "diptych")["spec"]
    assert spec["authOptions"]["mode"] == "token"
    assert tuple(int(part) for part in spec["rayVersion"].split(".")) >= (2, 52, 0)
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        assert not {"num-cpus", "num-gpus", "memory", "resources", "labels"} & group["rayStartParams"].keys()
    assert all(0 <= group["minReplicas"] <= group["maxReplicas"] for group in spec["workerGroupSpecs"])
    assert job["clusterSelector"] == {"ray.io/cluster": cluster["metadata"]["name"]}
    assert job["submissionMode"] == "K8sJobMode"  # the one that goes with a selected cluster
    assert not job.get("backoffLimit")


def test_ray_is_the_version_that_is_tested(cluster: dict[str, Any]) -> None:
    pinned = (DEPLOY.parent / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert f"ray=={cluster['spec']['rayVersion']}" in pinned


def test_every_pod_is_of_the_image_that_is_built_here() -> None:
    built = (DEPLOY / "docker/Dockerfile").read_text(encoding="utf-8")
    for thing in KUBERAY_OBJECTS:
        for name, pod in pod_specs(thing).items():
            (container,) = pod["containers"]
            if name == "diptych-valkey":
                compose = document(DEPLOY / "compose/compose.yaml")
                assert container["image"] == compose["services"]["valkey"]["image"]
            else:
                assert container["image"] == "diptych:0.1.0-cpu-smollm2"
                assert f"-t {container['image']} " in built


@pytest.mark.parametrize("pod", PODS)
def test_no_pod_may_more_than_it_needs(pod: dict[str, Any]) -> None:
    security = pod["securityContext"]
    assert security["runAsNonRoot"]
    assert security["runAsUser"] > 0
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
    for container in pod["containers"]:
        inside = container["securityContext"]
        assert inside["allowPrivilegeEscalation"] is False
        assert inside["capabilities"] == {"drop": ["ALL"]}
        assert not inside.get("privileged")
        assert container["resources"]["limits"]["memory"] == container["resources"]["requests"]["memory"] or (
            container["name"] == "ray-job-submitter"
        )


def test_nothing_is_exposed_without_a_lock(config: ClusterConfig) -> None:
    assert not config.allow_insecure_network
    assert config.trusted_kv_network
    services = [thing for thing in KUBERAY_OBJECTS if thing["kind"] == "Service"]
    assert all(service["spec"].get("type", "ClusterIP") == "ClusterIP" for service in services)
    assert not [port for service in services for port in service["spec"]["ports"] if port["port"] in (8265, 10001)]


def test_the_doors_have_the_same_ports_everywhere(cluster: dict[str, Any], config: ClusterConfig) -> None:
    doors = {"http": config.router.http_port, "grpc": config.router.grpc_port}
    (head,) = pod_specs(cluster)["head"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in head["ports"]}
    assert doors.items() <= ports.items()
    service = kuberay_object("Service", "diptych")["spec"]
    assert {port["targetPort"]: port["port"] for port in service["ports"]} == doors
    assert service["selector"] == {"ray.io/cluster": "diptych", "ray.io/node-type": "head"}
    clients, _ = kuberay_object("NetworkPolicy", "diptych-head")["spec"]["ingress"]
    assert [port["port"] for port in clients["ports"]] == list(doors.values())


def test_only_the_cluster_reaches_the_cluster(cluster: dict[str, Any]) -> None:
    ours = {"podSelector": {"matchLabels": {"ray.io/cluster": "diptych"}}}
    everywhere = kuberay_object("NetworkPolicy", "diptych-ray")["spec"]
    assert everywhere["podSelector"] == ours["podSelector"]
    assert everywhere["ingress"] == [{"from": [ours]}]
    assert set(everywhere["policyTypes"]) == {"Ingress", "Egress"}
    _, jobs = kuberay_object("NetworkPolicy", "diptych-head")["spec"]["ingress"]
    assert [port["port"] for port in jobs["ports"]] == [8265]
    submitter = {"ray.io/originated-from-crd": "RayJob", "ray.io/originated-from-cr-name": "diptych"}
    assert {"podSelector": {"matchLabels": submitter}} in jobs["from"]
    assert kuberay_object("RayJob", "diptych")["metadata"]["name"] == submitter["ray.io/originated-from-cr-name"]
    valkey = kuberay_object("NetworkPolicy", "diptych-valkey")["spec"]
    assert valkey["ingress"] == [{"from": [ours], "ports": [{"port": 6379}]}]
    assert valkey["podSelector"] == kuberay_object("Deployment", "diptych-valkey")["spec"]["selector"]


def test_one_pod_of_a_phase_may_be_taken_away_and_never_the_head(cluster: dict[str, Any]) -> None:
    budgets = {
        thing["metadata"]["name"]: thing["spec"] for thing in KUBERAY_OBJECTS if thing["kind"] == "PodDisruptionBudget"
    }
    for group in cluster["spec"]["workerGroupSpecs"]:
        budget = budgets.pop(f"diptych-{group['groupName']}")
        assert budget["selector"]["matchLabels"]["ray.io/group"] == group["groupName"]
        assert budget["maxUnavailable"] == 1
        assert group["minReplicas"] > 1
    assert budgets.pop("diptych-head")["maxUnavailable"] == 0
    assert not budgets


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="needs kubectl")
@pytest.mark.parametrize("persistent", [False, True])
def test_kustomize_puts_it_together(persistent: bool, tmp_path: Path) -> None:
    folder = shutil.copytree(KUBERAY, tmp_path / "kuberay")
    if persistent:
        text = (folder / "kustomization.yaml").read_text(encoding="utf-8")
        assert "\n# components: [persistence]" in text
        text = text.replace("\n# components:", "\ncomponents:")
        (folder / "kustomization.yaml").write_text(text, encoding="utf-8")
    made = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True, check=True)
    things = documents_of(made.stdout)
    assert [kubernetes_errors(thing) for thing in things] == [[]] * len(things)
    (config,) = (thing for thing in things if thing["kind"] == "ConfigMap")
    assert config["data"] == {"cluster.toml": (KUBERAY / "cluster.toml").read_text(encoding="utf-8")}
    (valkey,) = (thing for thing in things if thing["kind"] == "Deployment")
    (volume,) = valkey["spec"]["template"]["spec"]["volumes"]
    assert ("persistentVolumeClaim" in volume) is persistent
    assert ("emptyDir" in volume) is not persistent
