"""The image and the compose files: parsed, against the published schema, and against what they start."""

from __future__ import annotations

import re
from typing import Any

import pytest
from launch_files import COMPOSE, DEPLOY, ROOT, document, schema, schema_errors, seconds

from deploy.cluster_config import ClusterConfig
from deploy.cluster_file import read_cluster

DOCKERFILE = (DEPLOY / "docker/Dockerfile").read_text(encoding="utf-8")


@pytest.fixture
def described() -> dict[str, Any]:
    return document(COMPOSE / "compose.yaml")


@pytest.fixture(params=["cluster.toml", "cluster.gpu.toml"])
def config(request: pytest.FixtureRequest) -> ClusterConfig:
    return read_cluster(COMPOSE / request.param, {}, "")


@pytest.mark.parametrize("name", ["compose.yaml", "compose.gpu.yaml"])
def test_it_fits_the_compose_specification(name: str) -> None:
    assert schema_errors(document(COMPOSE / name), schema("compose-spec.json")) == []


def test_the_schema_refuses_what_is_not_there(described: dict[str, Any]) -> None:
    described["services"]["diptych"]["stop_grace"] = "1s"
    assert "'stop_grace' does not match" in schema_errors(described, schema("compose-spec.json"))[0]


def test_only_loopback_ports_are_published(described: dict[str, Any], config: ClusterConfig) -> None:
    """Which is why the configuration may lift the limit on addresses inside the container."""
    published = {name: service.get("ports", []) for name, service in described["services"].items()}
    assert all(port.startswith("127.0.0.1:") for ports in published.values() for port in ports)
    assert published["valkey"] == []
    inside = [int(port.rpartition(":")[2]) for port in published["diptych"]]
    assert inside == [config.router.http_port, config.router.grpc_port]
    assert not any("network_mode" in service for service in described["services"].values())
    assert config.allow_insecure_network
    assert config.admin.host == "127.0.0.1"


def test_nothing_has_privileges_or_floats(described: dict[str, Any]) -> None:
    for name, service in described["services"].items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert re.fullmatch(r"[\w./-]+:v?\d+\.\d+\.\d+(-\w+)?", service["image"]), name


def test_a_container_is_given_longer_than_a_stop_takes(described: dict[str, Any], config: ClusterConfig) -> None:
    given_s = seconds(described["services"]["diptych"]["stop_grace_period"])
    assert 2 * config.limits.drain_timeout_s + 20 < given_s  # deploy/cluster.py


def test_valkey_is_the_one_that_is_named(described: dict[str, Any], config: ClusterConfig) -> None:
    assert config.redis_url == "redis://valkey:6379/0"
    services, networks = described["services"], described["networks"]
    assert services["valkey"]["networks"] == ["inside"]
    assert networks["inside"] == {"internal": True}
    assert "inside" in services["diptych"]["networks"]
    assert services["diptych"]["depends_on"]["valkey"]["condition"] == "service_healthy"


@pytest.mark.parametrize("name", ["compose.yaml", "compose.gpu.yaml"])
def test_every_file_and_image_that_is_named_is_there(name: str) -> None:
    for service in document(COMPOSE / name)["services"].values():
        for volume in service.get("volumes", ()):
            source, *_ = volume.split(":")
            assert not source.startswith(".") or (COMPOSE / source).exists(), source
        if build := service.get("build"):
            assert f"--target {build['target']} " in DOCKERFILE
            assert f"-t {service['image']} " in DOCKERFILE
    built = document(COMPOSE / "compose.yaml")["services"]["diptych"]["build"]
    assert (COMPOSE / built["context"]).resolve() == ROOT
    assert (ROOT / built["dockerfile"]).is_file()


def test_the_gpu_file_books_a_gpu_for_every_worker() -> None:
    config = read_cluster(COMPOSE / "cluster.gpu.toml", {}, "")
    service = document(COMPOSE / "compose.gpu.yaml")["services"]["diptych"]
    (device,) = service["deploy"]["resources"]["reservations"]["devices"]
    wanted = sum(pool.count * pool.num_gpus for pool in (config.prefill, config.decode))
    assert device["count"] == wanted
    assert not config.surge
    mounted = [volume for volume in service["volumes"] if volume.endswith(":/models:ro")]
    assert mounted
    assert config.model.startswith("/models/")


def stages() -> dict[str, list[str]]:
    """The Dockerfile's instructions by stage, continued lines joined, the stages they build on not included."""
    found: dict[str, list[str]] = {"": []}
    stage = ""
    for line in re.sub(r"\\\n", " ", DOCKERFILE).splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        if match := re.fullmatch(r"FROM (\S+) AS (\S+)", line):
            stage = match[2]
            found[stage] = []
        found[stage].append(line)
    return found


def lineage(stage: str) -> list[str]:
    """With what it builds on, the first first."""
    own = stages()[stage]
    base = own[0].split()[1]
    return (lineage(base) if base in stages() else []) + own


@pytest.mark.parametrize("target", ["cpu", "cuda", "cpu-smollm2"])
def test_images_run_as_nobody_special(target: str) -> None:
    users = [line for line in lineage(target) if line.startswith("USER ")]
    assert users == ["USER 1000:1000"]
    assert any("useradd --uid 1000 " in line for line in lineage(target))
    assert any(line.startswith("HEALTHCHECK ") for line in lineage(target))
    assert 'ENTRYPOINT ["diptych"]' in lineage(target)


def test_images_are_made_of_pinned_parts_and_nothing_else() -> None:
    (base,) = stages()[""]
    assert re.fullmatch(r"ARG PYTHON=python:\d+\.\d+\.\d+-slim-\w+", base)
    everything = [line for lines in stages().values() for line in lines]
    assert not [
        line
        for line in everything
        if line.startswith("ADD ") or "curl" in line or "http:" in line.lower().replace("http://127.0.0.1", "")
    ]
    starts = [line.split()[1] for line in everything if line.startswith("FROM ")]
    assert all(start == "${PYTHON}" or start in stages() for start in starts)
    installs = [line for line in everything if "pip install" in line and "torch" not in line.lower()]
    assert len(installs) == 2
    assert all("-c constraints.txt -c deploy/docker/ray-default.txt" in line for line in installs)
    torches = [line for line in everything if line.startswith("ARG TORCH=")]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert set(torches) == {"ARG TORCH=" + re.search(r"^TORCH \?= (\S+)$", makefile, re.M)[1]}


def test_the_builder_gets_what_is_installed() -> None:
    """Everything that the wheel is made of, and no more of the checkout."""
    ignore = (DEPLOY / "docker/Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    assert "*" in ignore
    let_in = {line[1:] for line in ignore if line.startswith("!")}
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    packages = re.search(r"^packages = \[(\"router\".*)\]$", pyproject, re.M)
    assert packages is not None
    assert let_in == {*re.findall(r'"(\w+)"', packages[1]), "pyproject.toml", "constraints.txt", "README.md", "LICENSE"}
    assert all((ROOT / name).exists() for name in let_in)


def test_the_job_server_is_pinned_and_nothing_is_pinned_twice() -> None:
    def names(path: str) -> set[str]:
        lines = (ROOT / path).read_text(encoding="utf-8").splitlines()
        return {line.partition("==")[0].lower().replace("_", "-") for line in lines if "==" in line}

    assert {"aiohttp", "aiohttp-cors", "opencensus"} <= names("deploy/docker/ray-default.txt")
    assert not names("deploy/docker/ray-default.txt") & names("constraints.txt")
