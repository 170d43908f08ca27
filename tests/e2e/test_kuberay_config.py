"""The cluster that `deploy/kuberay` describes, without Kubernetes: Ray nodes with what its pods have, and its secrets.

Everything of the description is as it is in the files but what only a pod has: paths, and the size of the model.
"""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import ssl
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest
from launch_files import KUBERAY, document, documents_of
from ray_start import RayStart, ray_start
from up_process import UpProcess, free_port

from deploy.reconcile import Kind
from deploy.wanted import POOLS

pytestmark = [pytest.mark.slow, pytest.mark.skipif(shutil.which("openssl") is None, reason="secrets.sh needs openssl")]

WAIT_S = 180.0


def mount_secrets(folder: Path) -> str:
    """Where the pods have them, below `folder`; returns the client's key."""
    made = subprocess.run([KUBERAY / "secrets.sh", "acme"], capture_output=True, text=True, check=True)
    for secret in documents_of(made.stdout):
        place = folder / secret["metadata"]["name"].removeprefix("diptych-")
        place.mkdir()
        for name, value in secret["data"].items():
            (place / name).write_bytes(base64.b64decode(value))
    return made.stderr.split()[-1]


def describe(folder: Path, model: Path, http_port: int) -> Path:
    text = (KUBERAY / "cluster.toml").read_text(encoding="utf-8")
    baked = "/home/diptych/.cache/diptych/models/smollm2-135m-instruct"
    for before, after in (
        ("/etc/diptych", str(folder)),
        (baked, str(model)),
        ("http_port = 8000", f"http_port = {http_port}"),
        ("grpc_port = 9000", f"grpc_port = {free_port()}"),
        ("1_073_741_824", str(8 << 20)),
        ("count = 2", "count = 1"),  # two nodes beside the head are enough to see every way
    ):
        assert before in text
        text = text.replace(before, after)
    path = folder / "cluster.toml"
    path.write_text(text, encoding="utf-8")
    return path


def start_nodes(nodes: RayStart) -> None:
    nodes.head("--include-dashboard=false")
    for group in document(KUBERAY / "raycluster.yaml")["spec"]["workerGroupSpecs"]:
        resources = {name: float(amount) for name, amount in group["resources"].items()}
        options = [f"--num-cpus={round(resources.pop('CPU'))}", f"--resources={json.dumps(resources)}"]
        options += [f"--labels={name}={value}" for name, value in group["labels"].items()]
        nodes.wait_started(nodes.worker(*options))


async def test_it_serves_who_has_a_key_over_tls(
    model: Path, valkey_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, port = mount_secrets(tmp_path), free_port()
    described = describe(tmp_path, model, port)
    with ray_start(tmp_path, DIPTYCH_REDIS_URL=valkey_url) as nodes:
        await asyncio.to_thread(start_nodes, nodes)
        for name, value in nodes.environment.items():
            monkeypatch.setenv(name, value)
        words = ["--config", str(described), "--address", nodes.address, "--cluster", tmp_path.name]
        up = UpProcess(tmp_path, *words, "--max-tokens", "8")
        try:
            await up.wait_ready()
            with up.admin() as admin:
                status = admin.status()
            places = {kind: {process.hosting.node_id for process in status.of(kind)} for kind in Kind}
            assert len(set.union(*places.values())) == 3  # each kind on a node of its own
            assert all(len(places[kind]) == 1 for kind in POOLS)
            body = {"model": model.name, "prompt": "hello there", "max_tokens": 4}
            trusted = ssl.create_default_context(cafile=tmp_path / "doors-tls/ca.crt")
            url = f"https://localhost:{port}"
            async with httpx.AsyncClient(verify=trusted, base_url=url, trust_env=False) as client:
                assert await status_of(client, body, "") == 401
                assert await status_of(client, body, "sk-diptych-another") == 401
                assert await status_of(client, body, key) == 200
        finally:
            with up.admin() as admin:
                await asyncio.to_thread(admin.down)
            assert up.end() == 0


async def status_of(client: httpx.AsyncClient, body: dict[str, Any], key: str) -> int:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    answer = await client.post("/v1/completions", json=body, headers=headers)
    return answer.status_code
