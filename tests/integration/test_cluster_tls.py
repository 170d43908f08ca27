"""TLS between the processes of a cluster, over real connections."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from certificates import Authority, Files

from diptych import messages as m
from diptych import rpc
from diptych.config import WorkerConfig
from diptych.errors import LegFailed
from diptych.tls import CLUSTER_NAME, cluster_tls


class Answers:
    """A worker that only answers `Abort`."""

    async def abort(self, request: m.Abort) -> m.Aborted:
        return m.Aborted(known=True)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return self.abort


def config(files: Files) -> WorkerConfig:
    return WorkerConfig(
        role=m.Role.DECODE,
        model="x",
        cluster_cert_file=files.cert,
        cluster_key_file=files.key,
        cluster_ca_file=files.ca,
    )


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Authority(tmp_path_factory.mktemp("ours")).issue(CLUSTER_NAME)


@pytest.fixture
async def address(ours: Files) -> AsyncIterator[str]:
    server = rpc.make_server()
    rpc.add_to_server(Answers(), server)  # type: ignore[arg-type]
    tls = cluster_tls(config(ours))
    assert tls is not None
    port = rpc.listen(server, "127.0.0.1:0", tls.server())
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(None)


async def ask(address: str, files: Files | None) -> m.Aborted:
    stub = rpc.WorkerStub(address, cluster_tls(config(files)) if files else None)
    try:
        return await stub.call(rpc.ABORT, m.Abort("r"), 5.0)
    finally:
        await stub.close()


async def test_processes_of_one_cluster_talk(address: str, ours: Files) -> None:
    assert (await ask(address, ours)).known


async def test_whoever_has_no_certificate_is_not_answered(address: str) -> None:
    with pytest.raises(LegFailed):
        await ask(address, None)


async def test_a_certificate_of_another_authority_is_not_enough(address: str, ours: Files, tmp_path: Path) -> None:
    theirs = Authority(tmp_path).issue(CLUSTER_NAME)
    for files in (theirs, Files(theirs.cert, theirs.key, ours.ca)):
        with pytest.raises(LegFailed):
            await ask(address, files)


def test_no_files_mean_no_tls() -> None:
    assert cluster_tls(WorkerConfig(role=m.Role.DECODE, model="x")) is None


def test_the_three_files_belong_together() -> None:
    with pytest.raises(ValueError, match="cluster_key_file and cluster_ca_file missing"):
        WorkerConfig(role=m.Role.DECODE, model="x", cluster_cert_file="a")


@pytest.mark.parametrize("content", [None, "no PEM"])
def test_an_unusable_file_is_named(ours: Files, tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "key.pem"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=r"key\.pem"):
        cluster_tls(config(Files(ours.cert, str(path), ours.ca)))


def test_a_key_of_another_certificate_is_refused(ours: Files, tmp_path: Path) -> None:
    other = Authority(tmp_path).issue(CLUSTER_NAME)
    with pytest.raises(ValueError, match="are no certificate and its key"):
        cluster_tls(config(Files(ours.cert, other.key, ours.ca)))
