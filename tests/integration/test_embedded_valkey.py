"""The embedded Valkey answers, is closed to strangers, and is gone when its owner is: whichever way that goes."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import redis

import deploy.embedded_valkey as embedded_valkey
from deploy.embedded_valkey import EmbeddedValkey, ValkeyError

OWNER = """
import sys, time
from pathlib import Path
from deploy.embedded_valkey import EmbeddedValkey
with EmbeddedValkey(Path(sys.argv[1])) as valkey:
    print(valkey.pid, flush=True)
    time.sleep(600)
"""


def test_serves_while_it_is_entered_and_leaves_no_process(tmp_path: Path) -> None:
    with EmbeddedValkey(tmp_path) as valkey:
        process = psutil.Process(valkey.pid)
        with redis.Redis.from_url(valkey.url) as client:
            client.set("a", "1")
            assert client.get("a") == b"1"
            assert client.config_get("save")["save"] == ""
    assert not process.is_running()
    assert not list(tmp_path.glob("*.rdb"))


def test_listens_on_loopback_only_and_asks_for_its_password(tmp_path: Path) -> None:
    with EmbeddedValkey(tmp_path) as valkey:
        listening = {c.laddr[0] for c in psutil.Process(valkey.pid).net_connections("tcp") if c.status == "LISTEN"}
        assert listening == {"127.0.0.1"}
        with (
            redis.Redis.from_url(f"redis://{valkey.address}") as stranger,
            pytest.raises(redis.exceptions.AuthenticationError),
        ):
            stranger.get("a")
        assert (tmp_path / "valkey.conf").stat().st_mode & 0o077 == 0


def test_two_run_side_by_side(tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
    with EmbeddedValkey(folders[0]) as first, EmbeddedValkey(folders[1]) as second:
        assert first.address != second.address


def test_dies_with_an_owner_that_is_killed(tmp_path: Path) -> None:
    owner = subprocess.Popen([sys.executable, "-c", OWNER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    server = psutil.Process(int(owner.stdout.readline()))
    assert "valkey" in server.name()
    owner.kill()
    owner.wait()
    owner.stdout.close()
    _, alive = psutil.wait_procs([server], timeout=5.0)
    assert not alive or alive[0].status() == psutil.STATUS_ZOMBIE


def test_a_server_that_cannot_start_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setattr(embedded_valkey, "_free_port", lambda: taken.getsockname()[1])
        with pytest.raises(ValkeyError, match="Address already in use"):
            EmbeddedValkey(tmp_path).__enter__()
