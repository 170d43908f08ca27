"""A cluster that runs: its controller, seen from the process that started it."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import msgspec
import psutil
import ray
from ray.exceptions import ActorUnavailableError, GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from deploy.cluster_config import ClusterConfig
from deploy.controller import Controller
from deploy.progress import Progress
from deploy.readiness import delay, unready
from deploy.reconcile import Kind, State
from deploy.status import ClusterError, ClusterStatus, Crash
from diptych.errors import WireError, from_wire

POLL_S = 0.1
CALL_TIMEOUT_S = 10.0  # of the controller; it never works for long
RESTART_TIMEOUT_S = 60.0  # of a controller that was killed: a process has to start
KILL_PATIENCE_S = 20.0  # beyond the drain
LOG_LINES = 20


class Cluster:
    """A context manager: entering starts the controller, leaving ends every process in order. From any thread."""

    def __init__(self, config: ClusterConfig, entry_points: dict[str, str] | None = None, key: str = "") -> None:
        """
        Args:
            key: of a client, to whom the doors say why they are not ready; "": none is shown.
        """
        self.config = config
        self._key = key
        self._entry_points = entry_points or {}
        self.actor: Any = None

    def __enter__(self) -> Cluster:
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        options = {"max_restarts": -1, "num_cpus": 0, "scheduling_strategy": here}
        actor = ray.remote(Controller).options(**options)
        run_id = f"{self.config.name}:{secrets.token_hex(8)}"
        self.actor = actor.remote(msgspec.json.encode(self.config), run_id, self._entry_points)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        """
        Raises:
            ClusterError: the controller did not end everything. What it left ends by itself: see `deploy.actors`.
        """
        patience_s = 2 * self.config.limits.drain_timeout_s + KILL_PATIENCE_S
        try:
            self._call("shutdown", patience_s=patience_s, call_timeout_s=patience_s)
        finally:
            ray.kill(self.actor)

    def status(self, patience_s: float = RESTART_TIMEOUT_S) -> ClusterStatus:
        """
        Raises:
            ClusterError: there is no controller, yet or any more, or it has not answered for so long.
        """
        return msgspec.json.decode(self._call("status", patience_s=patience_s), type=ClusterStatus)

    def scale(self, counts: dict[Kind, int]) -> None:
        """Want so many processes from now on.

        Raises:
            BadRequest: it cannot be done; as of the other verbs. Nothing has changed then.
            ClusterError: there is no controller, yet or any more.
        """
        self._order("scale", {kind.value: count for kind, count in counts.items()})

    def release(self, pools: Sequence[Kind]) -> None:
        """Let the load decide about these pools again (autoscaling)."""
        self._order("release", [kind.value for kind in pools])

    def drain(self, worker: str, *, replace: bool = True) -> None:
        """Let a worker finish and end."""
        self._order("drain", worker, replace)

    def change_role(self, worker: str, role: Kind) -> None:
        """Let a worker finish and end, and start one of another role in its place."""
        self._order("change_role", worker, role.value)

    def end_controller(self, pid: int) -> None:
        """SIGKILL for a controller of this machine that does not answer; Ray starts another, which takes over."""
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            if process.name().startswith("ray::Controller"):
                process.kill()

    def _order(self, verb: str, *arguments: object) -> None:
        if refusal := self._call(verb, *arguments):
            raise from_wire(msgspec.json.decode(refusal, type=WireError))

    def _call(
        self,
        method: str,
        *arguments: object,
        patience_s: float = RESTART_TIMEOUT_S,
        call_timeout_s: float = CALL_TIMEOUT_S,
    ) -> Any:
        """Ask the controller; again, if it is killed meanwhile: its successor knows what it knew."""
        if self.actor is None:
            raise ClusterError("the cluster is still starting")
        deadline = time.monotonic() + patience_s
        while True:
            try:
                return ray.get(getattr(self.actor, method).remote(*arguments), timeout=call_timeout_s)
            except (ActorUnavailableError, GetTimeoutError) as error:
                if time.monotonic() >= deadline:
                    raise ClusterError(f"the controller has not answered for {patience_s:.0f} s") from error
                time.sleep(POLL_S)
            except RayError as error:
                raise ClusterError(f"the controller failed: {error}") from error

    def wait_until_ready(
        self, timeout_s: float, progress: Progress, given_up: Callable[[], bool] = lambda: False
    ) -> ClusterStatus:
        """Until every process runs, every router sees every worker, and a canary went end to end.

        Args:
            given_up: whether nobody wants to wait any longer.

        Raises:
            ClusterError: a process crashed, the time passed, or it was given up.
        """
        deadline = time.monotonic() + timeout_s
        seen: set[str] = set()
        while time.monotonic() < deadline:
            if given_up():
                raise ClusterError("it was told to go down before it was ready")
            status = self.status()
            if status.crashes:
                raise ClusterError(describe_crash(status.crashes[0]))
            for process in status.processes:
                if process.state is State.RUNNING and process.id not in seen:
                    seen.add(process.id)
                    progress.step(process.kind, f"{process.name} runs (pid {process.pid})")
            if status.complete and not unready(status, self._key):
                return status
            time.sleep(POLL_S)
        raise ClusterError(self._describe_delay(timeout_s))

    def _describe_delay(self, timeout_s: float) -> str:
        status = self.status()
        late = [process for process in status.processes if process.state is not State.RUNNING]
        tails = "".join(f"\n{tail(process.log_path)}" for process in late or status.processes)
        return f"the cluster was not ready within {timeout_s:.0f} s: {delay(status, self._key)}{tails}"


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
