"""A cluster that runs: its controller, seen from the process that started it."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

import httpx
import msgspec
import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from deploy.cluster_config import ClusterConfig
from deploy.controller import ClusterStatus, Controller, Crash, ProcessStatus
from deploy.progress import Progress
from deploy.reconcile import Kind, State

POLL_S = 0.1
CALL_TIMEOUT_S = 10.0  # of the controller; it never works for long
KILL_PATIENCE_S = 15.0  # beyond the drain
LOG_LINES = 20


class ClusterError(Exception):
    """The cluster did not start, or does not work any more; the message says why."""


class Cluster:
    """A context manager: entering starts the controller, leaving ends every process in order."""

    def __init__(self, config: ClusterConfig, entry_points: dict[str, str] | None = None) -> None:
        self._config = config
        self._entry_points = entry_points or {}
        self.actor: Any = None
        self._run: Any = None

    def __enter__(self) -> Cluster:
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        options = {"max_restarts": 0, "num_cpus": 0, "scheduling_strategy": here}
        actor = ray.remote(Controller).options(**options)
        self.actor = actor.remote(msgspec.json.encode(self._config), self._entry_points)
        self._run = self.actor.run.remote()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        try:
            ray.get(self.actor.shutdown.remote(), timeout=2 * self._config.drain_timeout_s + KILL_PATIENCE_S)
        except RayError:
            ray.kill(self.actor)  # Ray ends its actors with it

    def status(self) -> ClusterStatus:
        """
        Raises:
            ClusterError: the controller is gone.
        """
        try:
            ended, _ = ray.wait([self._run], timeout=0)
            if ended:
                ray.get(self._run)
            reply = ray.get(self.actor.status.remote(), timeout=CALL_TIMEOUT_S)
        except GetTimeoutError:
            raise ClusterError(f"the controller has not answered for {CALL_TIMEOUT_S:.0f} s") from None
        except RayError as error:
            raise ClusterError(f"the controller failed: {error}") from error
        return msgspec.json.decode(reply, type=ClusterStatus)

    def scale(self, kind: Kind, count: int) -> None:
        """Want `count` processes of a kind from now on."""
        ray.get(self.actor.scale.remote(str(kind), count), timeout=CALL_TIMEOUT_S)

    def wait_until_ready(self, timeout_s: float, progress: Progress) -> ClusterStatus:
        """Until every process runs, the router sees every worker, and a canary went end to end.

        Raises:
            ClusterError: a process crashed, or the time passed.
        """
        deadline = time.monotonic() + timeout_s
        seen: set[str] = set()
        while time.monotonic() < deadline:
            status = self.status()
            if status.crashes:
                raise ClusterError(describe_crash(status.crashes[0]))
            for process in status.processes:
                if process.state is State.RUNNING and process.log_path not in seen:
                    seen.add(process.log_path)
                    progress.step(process.kind, f"{name_of(process)} runs (pid {process.pid})")
            if status.complete and not self._unready():
                return status
            time.sleep(POLL_S)
        raise ClusterError(self._describe_delay(timeout_s))

    def router(self, status: ClusterStatus) -> dict[str, str]:
        """What the router says about itself."""
        record = next(process.record for process in status.processes if process.kind is Kind.ROUTER)
        said: dict[str, str] = msgspec.json.decode(record)
        return said

    def _unready(self) -> str:
        """Why the public door does not call the cluster healthy and whole; empty when it does."""
        try:
            response = httpx.get(f"{base_url(self._config)}/health", timeout=CALL_TIMEOUT_S, trust_env=False)
        except httpx.HTTPError as error:
            return f"/health cannot be reached: {error}"
        view = msgspec.json.decode(response.content)
        if response.status_code != 200:
            return "; ".join(view.get("reasons", ())) or f"/health says {response.status_code}"
        details = view.get("details", {})
        wanted = {"prefill_workers": self._config.prefill, "decode_workers": self._config.decode}
        missing = [
            f"{details.get(name, 0)} of {count} {name}"
            for name, count in wanted.items()
            if details.get(name, 0) < count
        ]
        return "; ".join([*missing, *view.get("reasons", ())]) if missing else ""

    def _describe_delay(self, timeout_s: float) -> str:
        status = self.status()
        late = [process for process in status.processes if process.state is not State.RUNNING]
        reason = ", ".join(f"{process.kind} is {process.state}" for process in late) or self._unready()
        tails = "".join(f"\n{tail(process.log_path)}" for process in late or status.processes)
        return f"the cluster was not ready within {timeout_s:.0f} s: {reason}{tails}"


def base_url(config: ClusterConfig) -> str:
    """The HTTP door as seen from this machine."""
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(config.host, config.host)
    return f"http://{host}:{config.http_port}"


def name_of(process: ProcessStatus) -> str:
    record = msgspec.json.decode(process.record) or {}
    return str(record.get("worker_id") or record.get("router_id") or process.kind)


def describe_crash(crash: Crash) -> str:
    last_line = crash.reason.strip().splitlines()[-1] if crash.reason.strip() else "no reason known"
    return f"{crash.worker_id or f'a {crash.kind} process'} died: {last_line}\n{tail(crash.log_path)}"


def tail(log_path: str) -> str:
    try:
        with open(log_path, errors="replace") as log:
            lines = log.read().splitlines()[-LOG_LINES:]
    except OSError:
        return f"(its log is {log_path}, not on this machine)"
    return "\n".join([f"--- the end of {log_path}", *lines, "---"])
