"""A whole cluster with every lock there is: TLS and keys at its doors, TLS between its processes, TLS for its admin."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from certificates import Authority
from up_process import UpProcess, free_port

from diptych.tls import CLUSTER_NAME
from diptych.trust import pinned

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 4, "return_report": True}


@pytest.fixture
def key(tmp_path: Path) -> str:
    """Made as a user makes one."""
    command = [sys.executable, "-m", "deploy.cli", "key", "acme", "--file", str(tmp_path / "keys.toml")]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def up(model: Path, tmp_path: Path, key: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[UpProcess]:
    authority = Authority(tmp_path)
    door, inside = authority.issue("diptych.example"), authority.issue(CLUSTER_NAME)
    description = tmp_path / "cluster.toml"
    description.write_text(
        f"""
model = "{model}"
[options]
cluster_cert_file = "{inside.cert}"
cluster_key_file = "{inside.key}"
cluster_ca_file = "{inside.ca}"
[prefill.options]
kv_cache_bytes = 8_000_000
[decode.options]
kv_cache_bytes = 8_000_000
[router]
http_port = {free_port()}
options = {{ remote_prefill = "always", api_keys_file = "{tmp_path}/keys.toml",
             tls_cert_file = "{door.cert}", tls_key_file = "{door.key}" }}
[admin]
tls_cert_file = "{door.cert}"
tls_key_file = "{door.key}"
""".replace(",\n             tls", ", tls")
    )
    monkeypatch.setenv("DIPTYCH_API_KEY", key)
    running = UpProcess(tmp_path, "--config", str(description), "--max-tokens", "4")
    yield running
    running.process.terminate()
    assert running.end() in (0, 143), running.output.read_text()


async def test_a_cluster_with_every_lock_serves_who_has_a_key(up: UpProcess, key: str, tmp_path: Path) -> None:
    await up.wait_ready()
    text = up.output.read_text()
    assert re.search(r"decode-\S+ +prompt tokens: \d+ transferred", text)  # its own question, with the key
    assert key not in text
    url = re.findall(r"HTTP +(https://\S+)/v1", text)[0]
    trust = pinned(str(tmp_path / "diptych.example.pem"))
    async with httpx.AsyncClient(base_url=url, verify=trust, timeout=30.0, trust_env=False) as client:
        refused = await client.post("/v1/chat/completions", json=CHAT)
        assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
        answer = await client.post("/v1/chat/completions", json=CHAT, headers={"authorization": f"Bearer {key}"})
        assert answer.status_code == 200, answer.text
        assert answer.json()["diptych"]["prefill_worker"]  # two workers met over their own TLS
    with up.admin() as admin:
        assert str(admin._http.base_url).startswith("https://")
        status = admin.status()
        assert status.complete
        assert all(process.health == "ok" for process in status.processes)  # the controller hears their frames
