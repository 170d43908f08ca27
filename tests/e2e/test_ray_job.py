"""`diptych up` as a Ray job: submitted to a Ray with tokens on and its dashboard on loopback, operated, stopped.

Needs what `ray[default]` adds to Ray (the job server); without it there is nothing to test.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest
from ray_start import ray_start
from reference import Reference, random_prompt
from steady_load import Question, SteadyLoad
from up_process import free_port
from waiting import look_until

from deploy.api import Admin, find
from deploy.reconcile import Kind

for extra in ("aiohttp_cors", "opencensus"):
    pytest.importorskip(extra, reason="the job server of Ray needs ray[default]")

pytestmark = pytest.mark.slow

WAIT_S = 180.0
DRAIN_S = 2.0
REQUESTS = 20
DESCRIPTION = """
model = "{model}"
served_model = "tiny"
redis_url = "{redis_url}"
name = "{name}"
allow_insecure_network = true  # Ray names its node by an address of this machine, not by loopback
[prefill.options]
kv_cache_bytes = 8388608
[decode.options]
kv_cache_bytes = 8388608
[router]
http_port = {port}
[router.options]
remote_prefill = "always"
[limits]
drain_timeout_s = {drain_s}
start_timeout_s = 120
orphan_timeout_s = 10
"""


@dataclass
class Head:
    """A Ray head of our own, with a job server on loopback."""

    dashboard: str
    environment: dict[str, str]

    def job(self, *words: str) -> str:
        """`ray job …`, as a user types it; its output."""
        command = [
            sys.executable,
            "-m",
            "ray.scripts.scripts",
            "job",
            words[0],
            "--address",
            self.dashboard,
            *words[1:],
        ]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=WAIT_S)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def submit(self, *entrypoint: str) -> str:
        """The job's id."""
        self.job("submit", "--no-wait", "--submission-id", "up", "--", *entrypoint)
        return "up"

    def get(self, path: str, token: str = "") -> httpx.Response:
        """The same by the API behind it, which is quicker."""
        bearer = {"Authorization": f"Bearer {token or self.environment['RAY_AUTH_TOKEN']}"}
        return httpx.get(f"{self.dashboard}/api/jobs/{path}", headers=bearer, timeout=30, trust_env=False)

    def status(self, job: str) -> str:
        return str(self.get(job).json()["status"])

    def logs(self, job: str) -> str:
        return str(self.get(f"{job}/logs").json()["logs"])

    def wait_for(self, job: str, status: str) -> None:
        look_until(lambda: (self.status(job), self.logs(job)), lambda seen: seen[0] == status, WAIT_S)


@contextmanager
def ray_head(home: Path, stop_wait_s: float) -> Iterator[Head]:
    """
    Args:
        stop_wait_s: patience of `ray job stop`.
    """
    port = free_port()
    with ray_start(home, RAY_JOB_STOP_WAIT_TIME_S=str(round(stop_wait_s))) as started:
        client_port = f"--ray-client-server-port={free_port()}"
        node = started.head(
            "--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--dashboard-port={port}", client_port
        )
        head = Head(f"http://127.0.0.1:{port}", started.environment)
        look_until(lambda: started.log(node), lambda log: _answers(head, node, log), WAIT_S)
        yield head


def _answers(head: Head, node: psutil.Popen, log: str) -> bool:
    assert node.poll() is None, log
    try:
        return head.get("").status_code == 200
    except httpx.HTTPError:
        return False


def entrypoint(home: Path, model: Path, valkey_url: str, port: int) -> list[str]:
    described = home / "cluster.toml"
    text = DESCRIPTION.format(model=model, redis_url=valkey_url, name=home.name, port=port, drain_s=DRAIN_S)
    described.write_text(text, encoding="utf-8")
    return [sys.executable, "-m", "deploy.cli", "up", "--config", str(described), "--address", "auto"]


def admin_of(head: Head) -> Admin:
    """As `diptych status` finds it, run by the user of the head, on the head."""
    return find(environment=head.environment)


async def test_up_runs_as_a_ray_job_and_is_operated_and_ended_like_any_other(
    model: Path, valkey_url: str, tmp_path: Path, reference: Reference
) -> None:
    prompt = random_prompt(100, 1)
    questions = [Question(prompt, reference.tokens(prompt, 20))]
    port = free_port()
    with ray_head(tmp_path, stop_wait_s=60) as head:
        assert head.get("", token="another").status_code == 403  # nobody gets in without the token
        job = await asyncio.to_thread(head.submit, *entrypoint(tmp_path, model, valkey_url, port))
        await asyncio.to_thread(wait_until_it_serves, head, job, port)
        async with SteadyLoad(f"http://127.0.0.1:{port}", "tiny", questions, num_clients=2, seed=0) as load:
            await load.more(REQUESTS)
            with admin_of(head) as admin:
                load.during = "scaling"
                await asyncio.to_thread(admin.scale, decode=2)
                await load.more(REQUESTS)
                hosted = [psutil.Process(process.pid) for process in admin.status().processes]
                assert len(admin.status().of(Kind.DECODE)) == 2
        assert load.seen.errors == []
        with admin_of(head) as admin:
            await asyncio.to_thread(admin.down)
        await asyncio.to_thread(head.wait_for, job, "SUCCEEDED")
        _, alive = psutil.wait_procs(hosted, timeout=30)
        assert alive == []
        assert "nothing is left behind" in head.logs(job)


def wait_until_it_serves(head: Head, job: str, port: int) -> None:
    def serves(said: str) -> bool:
        assert head.status(job) != "FAILED", said
        return "Ctrl-C stops everything" in said

    look_until(lambda: head.logs(job), serves, WAIT_S)
    assert httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False).status_code == 200


@pytest.mark.parametrize("stop_wait_s", [1, 60], ids=["impatient", "patient"])
async def test_stopping_the_job_leaves_nothing_running(
    stop_wait_s: float, model: Path, valkey_url: str, tmp_path: Path
) -> None:
    """Patient, the job drains and says so; killed after a second, its processes drain and end by themselves."""
    port = free_port()
    with ray_head(tmp_path, stop_wait_s) as head:
        job = await asyncio.to_thread(head.submit, *entrypoint(tmp_path, model, valkey_url, port))
        await asyncio.to_thread(wait_until_it_serves, head, job, port)
        with admin_of(head) as admin:
            hosted = [psutil.Process(process.pid) for process in admin.status().processes]
        await asyncio.to_thread(head.job, "stop", job)
        await asyncio.to_thread(head.wait_for, job, "STOPPED")
        _, alive = await asyncio.to_thread(psutil.wait_procs, hosted, timeout=WAIT_S)
        assert [process for process in alive if process.status() != psutil.STATUS_ZOMBIE] == []
        assert ("nothing is left behind" in head.logs(job)) == (stop_wait_s > DRAIN_S)
