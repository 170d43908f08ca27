"""The admin door and its client: every verb waits for its effect, refusals say why, nobody gets in without the key."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import msgspec
import psutil
import pytest
from certificates import Authority

from deploy.admin_door import make_admin_app
from deploy.api import Admin, AdminError, find
from deploy.cli import app
from deploy.reconcile import Kind, State
from deploy.running import Running, RunningFiles
from deploy.status import ClusterError, ClusterStatus, Hosting, ProcessStatus
from deploy.status_table import table
from deploy.wanted import Wanted
from deploy.web_server import served
from diptych.errors import BadRequest
from diptych.messages import WorkerStats
from diptych.trust import pinned, trusting

KEY = "a-key"


def process(kind: Kind, number: int, state: State = State.RUNNING, leaving: bool = False) -> ProcessStatus:
    return ProcessStatus(
        id=f"{kind}-{number}",
        kind=kind,
        state=state,
        leaving=leaving,
        hosting=Hosting(pid=100 + number, created_at_s=0.0, node_id="n", node="10.0.0.7"),
        log_path="/logs/x",
        record=msgspec.Raw(msgspec.json.encode({"worker_id": f"{kind}-host-{number}"})),
        stats=WorkerStats(num_running=3, blocks_total=10, blocks_free=4, blocks_cached=5, transfer_bytes_per_s=2e6),
    )


class FakeCluster:
    """A cluster whose every look at its status is one step further."""

    def __init__(self) -> None:
        self.wanted = Wanted(counts={Kind.PREFILL: 1, Kind.DECODE: 2, Kind.ROUTER: 1})
        self.processes = [process(Kind.PREFILL, 1), process(Kind.DECODE, 2), process(Kind.DECODE, 3)]
        self.orders: list[object] = []
        self.gone = False
        self._next = 10

    def status(self) -> ClusterStatus:
        if self.gone:
            raise ClusterError("the controller is gone")
        self._step()
        running = [p.kind for p in self.processes if p.state is State.RUNNING]
        return ClusterStatus(
            name="c",
            model="m",
            wanted=self.wanted.counts,
            processes=list(self.processes),
            crashes=[],
            complete=True,
            placeable={kind: running.count(kind) for kind in (Kind.PREFILL, Kind.DECODE)},
            controller_pid=1,
        )

    def scale(self, counts: dict[Kind, int]) -> None:
        self.wanted = self.wanted.scaled(counts)
        self.orders.append(counts)

    def drain(self, worker: str, *, replace: bool) -> None:
        self._leave(worker, lambda id, kind: self.wanted.without(id, kind, replace=replace))
        self.orders.append((worker, replace))

    def change_role(self, worker: str, role: Kind) -> None:
        self._leave(worker, lambda id, kind: self.wanted.moved(id, kind, role))
        self.orders.append((worker, role))

    def _leave(self, worker: str, change) -> None:  # type: ignore[no-untyped-def]
        found = next((p for p in self.processes if p.name == worker), None)
        if found is None:
            raise BadRequest(f"there is no worker {worker!r}")
        self.wanted = change(found.id, found.kind)
        stopping = msgspec.structs.replace(found, state=State.STOPPING, leaving=True)
        self.processes[self.processes.index(found)] = stopping

    def _step(self) -> None:
        ends = [p for p in self.processes if p.state is State.STOPPING]
        starts = [p for p in self.processes if p.state is State.STARTING]
        if ends:
            self.processes.remove(ends[0])
        elif starts:
            self.processes[self.processes.index(starts[0])] = msgspec.structs.replace(starts[0], state=State.RUNNING)
        else:
            for kind in (Kind.PREFILL, Kind.DECODE):
                missing = self.wanted.counts[kind] - sum(p.kind is kind for p in self.processes)
                if missing > 0:
                    self._next += 1
                    return self.processes.append(process(kind, self._next, State.STARTING))
                if missing < 0:
                    index = next(i for i, p in enumerate(self.processes) if p.kind is kind)
                    self.processes[index] = msgspec.structs.replace(self.processes[index], state=State.STOPPING)
        return None


@pytest.fixture
def cluster() -> FakeCluster:
    return FakeCluster()


@pytest.fixture
def url(cluster: FakeCluster) -> Iterator[str]:
    def down() -> None:
        cluster.gone = True
        threading.Thread(target=stack.__exit__, args=(None, None, None)).start()

    stack = served(make_admin_app(cluster, KEY, down), "127.0.0.1", 0)
    yield stack.__enter__()
    if not cluster.gone:
        stack.__exit__(None, None, None)


@pytest.fixture
def admin(url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Admin]:
    monkeypatch.setattr("deploy.api.POLL_S", 0.001)
    with Admin(url, KEY) as admin:
        yield admin


def test_scale_waits_until_the_pools_are_as_they_should_be(admin: Admin, cluster: FakeCluster) -> None:
    said: list[str] = []
    admin.say = said.append
    status = admin.scale(prefill=3, decode=1)
    assert [p.kind for p in status.processes].count(Kind.PREFILL) == 3
    assert [p.state for p in status.of(Kind.DECODE)] == [State.RUNNING]
    assert any("prefill: 1 of 3 run, 1 starting" in text for text in said)
    assert len(said) == len(set(said))  # each once


def test_drain_and_role_wait_until_the_worker_is_gone_and_followed(admin: Admin, cluster: FakeCluster) -> None:
    status = admin.drain("decode-host-2")
    assert status.find("decode-host-2") is None
    assert len(status.of(Kind.DECODE)) == 2
    status = admin.change_role("decode-host-3", Kind.PREFILL)
    assert (len(status.of(Kind.PREFILL)), len(status.of(Kind.DECODE))) == (2, 1)
    assert cluster.orders == [("decode-host-2", True), ("decode-host-3", Kind.PREFILL)]


def test_what_cannot_be_done_is_refused_with_the_reason(admin: Admin, cluster: FakeCluster) -> None:
    before = cluster.wanted
    with pytest.raises(BadRequest, match="decode is 0"):
        admin.scale(decode=0)
    with pytest.raises(BadRequest, match="no worker 'nobody'"):
        admin.drain("nobody")
    with pytest.raises(BadRequest, match="is a decode worker already"):
        admin.change_role("decode-host-2", Kind.DECODE)
    assert cluster.wanted == before


def test_an_effect_that_does_not_come_is_an_error(admin: Admin, cluster: FakeCluster) -> None:
    cluster._step = lambda: None  # type: ignore[method-assign]
    admin.timeout_s = 0.01
    with pytest.raises(AdminError, match=r"no effect within 0.01 s: prefill: 1 of 2 run"):
        admin.scale(prefill=2)


def test_down_returns_when_the_door_has_closed(admin: Admin, cluster: FakeCluster) -> None:
    admin.down()
    with pytest.raises(AdminError, match="cannot be reached"):
        admin.status()


@pytest.mark.parametrize("header", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": KEY[:-1]}])
def test_nobody_gets_in_without_the_key(url: str, cluster: FakeCluster, header: dict[str, str]) -> None:
    with httpx.Client(base_url=url, headers=header, trust_env=False) as http:
        assert http.get("/status").status_code == 401
        for verb in ("/scale", "/drain", "/role", "/down"):
            assert http.post(verb, content=b'{"decode": 3}').status_code == 401
    assert not cluster.orders
    assert not cluster.gone


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/scale", "{", 400),
        ("/scale", "{}", 400),
        ("/scale", '{"decode": "3"}', 400),
        ("/scale", '{"decoder": 3}', 400),
        ("/drain", "{}", 400),
        ("/role", '{"worker": "decode-host-2", "role": "judge"}', 400),
        ("/role", '{"worker": "decode-host-2", "role": "router"}', 400),
        ("/scale", " " * 100_000, 413),
    ],
)
def test_a_body_that_is_none_is_refused(url: str, cluster: FakeCluster, path: str, body: str, status: int) -> None:
    answer = httpx.post(url + path, content=body, headers={"Authorization": f"Bearer {KEY}"}, trust_env=False)
    assert answer.status_code == status, answer.text
    assert not cluster.orders


@pytest.mark.parametrize("body", [b"nonsense", b'{"counts": 3}', b'{"prefill": "\xff"}'])
def test_a_body_that_cannot_be_read_is_a_bad_request(url: str, body: bytes) -> None:
    headers = {"Authorization": f"Bearer {KEY}"}
    answer = httpx.post(f"{url}/scale", headers=headers, content=body, trust_env=False)
    assert answer.status_code == 400
    assert "is not what this route takes" in answer.text


def test_a_controller_that_is_gone_is_said(url: str, cluster: FakeCluster) -> None:
    cluster.gone = True
    answer = httpx.get(f"{url}/status", headers={"Authorization": f"Bearer {KEY}"}, trust_env=False)
    assert answer.status_code == 503
    assert "the controller is gone" in answer.text
    cluster.gone = False


def test_commands_find_the_only_cluster_of_their_user(tmp_path: Path) -> None:
    environment, me = {"XDG_STATE_HOME": str(tmp_path)}, psutil.Process()
    files = RunningFiles(environment)
    with pytest.raises(AdminError, match="start one with diptych up"):
        find(environment=environment)
    running = Running(
        name="blue", admin_url="http://127.0.0.1:1", admin_key=KEY, pid=me.pid, created_at_s=me.create_time()
    )
    path = files.write(running)
    assert path.stat().st_mode & 0o077 == 0  # the key is nobody else's business
    dead = files.write(msgspec.structs.replace(running, name="dead", created_at_s=1.0))
    (path.parent / "broken-1.json").write_bytes(b'{"name": "\xff"}')
    assert files.alive() == [running]
    assert not dead.exists()
    find(environment=environment)
    with pytest.raises(AdminError, match="called 'green'"):
        find("green", environment=environment)
    files.write(msgspec.structs.replace(running, name="green"))
    with pytest.raises(AdminError, match="several clusters run: blue, green"):
        find(environment=environment)


def test_the_table_has_a_line_for_every_process() -> None:
    cluster = FakeCluster()
    cluster.processes.append(process(Kind.PREFILL, 9, State.STOPPING, leaving=True))
    lines = table(cluster.status()).splitlines()
    assert lines[0] == "c: m; wanted 1 prefill, 2 decode, 1 router"
    (row,) = [line for line in lines if line.startswith("decode-host-2")]
    assert row.split() == [
        "decode-host-2",
        "decode",
        "10.0.0.7",
        "102",
        "running",
        "3",
        "0",
        "1+5/10",
        "-",
        "-",
        *["2", "MB/s"],
    ]


def command(words: list[str]) -> int:
    return int(app(words, result_action="return_value"))


def test_the_commands_end_with_the_reason(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    reach = ["--admin", url, "--admin-key", KEY, "--timeout", "5"]
    assert command(["scale", "decode=3", *reach]) == 0
    assert command(["status", "--json", *reach]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["wanted"]["decode"] == 3
    for words, reason in (
        (["scale", "decode=0"], "decode is 0"),
        (["scale", "decode"], "is not a count"),
        (["scale"], "how many of what"),
        (["drain", "nobody"], "no worker 'nobody'"),
    ):
        assert command([*words, *reach]) == 1
        assert reason in capsys.readouterr().err
    assert command(["status", "--admin", "http://127.0.0.1:9"]) == 1
    assert "cannot be reached" in capsys.readouterr().err
    assert os.environ.get("DIPTYCH_ADMIN_KEY") is None


def test_over_tls_only_the_doors_own_certificate_is_trusted(cluster: FakeCluster, tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ours")
    door, sibling = authority.issue("diptych.example"), authority.issue("other.example")
    for issued in (door, sibling):  # as authorities deliver them: with their issuers
        Path(issued.cert).write_text(Path(issued.cert).read_text() + Path(issued.ca).read_text())
    with served(make_admin_app(cluster, KEY, lambda: None), "127.0.0.1", 0, (door.cert, door.key)) as url:
        assert url.startswith("https://")
        with Admin(url, KEY, trust=pinned(door.cert)) as admin:
            assert admin.status().processes
        for trust in (None, pinned(sibling.cert), trusting(door.ca)):  # the last: right, but for another name
            with Admin(url, KEY, trust=trust) as admin, pytest.raises(AdminError, match="cannot be reached"):
                admin.status()


def test_a_door_elsewhere_is_trusted_by_its_authority_and_name(cluster: FakeCluster, tmp_path: Path) -> None:
    door = Authority(tmp_path).issue("127.0.0.1")
    with served(make_admin_app(cluster, KEY, lambda: None), "127.0.0.1", 0, (door.cert, door.key)) as url:
        with find(url=url, key=KEY, ca_file=door.ca) as admin:
            assert admin.status().processes
        with pytest.raises(AdminError, match="cannot be used"):
            find(url=url, key=KEY, ca_file=str(tmp_path / "none.pem"))


def test_a_certificate_without_its_key_is_refused_at_once(cluster: FakeCluster, tmp_path: Path) -> None:
    one, other = (Authority(tmp_path / name).issue("127.0.0.1") for name in ("one", "other"))
    with (
        pytest.raises(OSError, match="KEY_VALUES_MISMATCH"),
        served(make_admin_app(cluster, KEY, lambda: None), "127.0.0.1", 0, (one.cert, other.key)),
    ):
        pass
