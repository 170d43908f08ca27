"""Systems that an experiment runs on: a cluster of its own, started and scaled as cells need it, or one that runs.

    async with contextlib.aclosing(StartedCluster({"model": "smollm2-135m-instruct"}, folder, os.environ)) as system:
        base_url = await system.shape(Shape(prefill=1, decode=2))

Both speak HTTP to the cluster's doors; starting is one `diptych up`, which has Ray start the pools.
"""

from __future__ import annotations

import secrets
import ssl
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from diptych.trust import trusting
from loadgen.experiment.admin import AdminDoor, Status
from loadgen.experiment.lent import Lent
from loadgen.experiment.process import UpProcess, find_door, running_folder
from loadgen.experiment.shape import Say, Shape, System, SystemUnavailable
from loadgen.experiment.toml import to_toml

__all__ = ["RunningCluster", "Shape", "StartedCluster", "System", "SystemUnavailable", "running_cluster"]

START_TIMEOUT_S = 300.0


def _silent(_text: str) -> None:
    pass


class RunningCluster:
    """A cluster that somebody else started: it can be scaled, and nothing else. `close` gives it its sizes back.

    Args:
        trust: in an https admin door; None: in what the system's authorities signed.
    """

    def __init__(self, admin_url: str, admin_key: str, say: Say = _silent, trust: ssl.SSLContext | None = None) -> None:
        self.door = AdminDoor(admin_url, admin_key, trust=trust)
        self.cluster = ""  # its name, as soon as it has said it
        self._say = say
        self._known: Shape | None = None  # what it must be like, by the shapes so far
        self._lent: Lent | None = None  # what it was like
        self._touched = False

    async def shape(self, shape: Shape) -> str:
        """
        Raises:
            SystemUnavailable: also if it differs in what only a start can change.
        """
        known = self._known or shape
        if not known.prefill:  # shapes without prefill workers leave open what the router was told about them
            known = replace(known, prefill=shape.prefill, remote_prefill=shape.remote_prefill)
        if not known.only_scales(shape):
            raise SystemUnavailable(_cannot(known, shape))
        self._known = known
        status = await self.door.status()
        self.cluster = status.name or self.door.url
        _check_budget(status, shape)
        self._lent = self._lent or Lent.of(status)
        has_it = status.has({"prefill": shape.prefill, "decode": shape.decode})
        if not has_it or (self._lent.follows_load and not self._touched):  # which would not stay so under load
            self._touched = True
            status = await self.door.scale(shape, self._say)
            _check_budget(status, shape)
        return status.base_url(self.door.url)

    async def close(self) -> None:
        try:
            await self._give_back()
        finally:
            await self.door.close()

    aclose = close  # for contextlib.aclosing

    async def _give_back(self) -> None:
        """Not waited for: who interrupts wants to go. A failure here must not hide what ended the experiment."""
        lent = self._lent
        if lent is None or not self._touched:
            return
        self._touched = False
        try:
            for body in lent.requests():
                await self.door.ask_scale(body)
            self._say(f"asked the cluster to be as it was found: {lent}")
        except SystemUnavailable as error:
            self._say(f"the cluster keeps its present size ({error}); to put it back: diptych scale {lent}")


def running_cluster(url: str, key: str, ca_file: str, environment: Mapping[str, str], say: Say) -> RunningCluster:
    """
    Args:
        url, key: of its admin door; an empty URL: of the one cluster that this user runs.
        ca_file: of a private authority that signed the certificate of `url`.

    Raises:
        SystemUnavailable: this user runs none, or more than one.
        OSError: a certificate cannot be read.
    """
    if url:
        return RunningCluster(url, key, say, trusting(ca_file) if ca_file else None)
    found = find_door(running_folder(environment))
    return RunningCluster(found.admin_url, found.admin_key, say, found.trust)


class StartedCluster:
    """A cluster of its own. It is started anew where the policy, the router's choice of remote prefill or the chunk
    size differ, because a running one cannot change them; otherwise it is scaled.

    Args:
        described: of the cluster, as `diptych up --config` takes it (deploy/cluster_config.py lists the fields); what
            shapes say is filled in.
        folder: for the description and what the command says.
        environment: of the process: where the user's cache and state are.
        ray_address: of an existing Ray cluster; empty: a private one.
        alone: what the router is told about remote prefill if the first shape has no prefill workers: what later shapes
            with some will want, so that they are scaled to.
    """

    cluster = ""  # it is made anew every time, under another name

    def __init__(
        self,
        described: Mapping[str, Any],
        folder: Path,
        environment: Mapping[str, str],
        say: Say = _silent,
        ray_address: str = "",
        alone: str = "auto",
    ) -> None:
        self.num_starts = 0
        self._described = described
        self._folder = folder
        self._environment = environment
        self._say = say
        self._ray_address = ray_address
        self._alone = alone
        self._started: Shape | None = None
        self._process: UpProcess | None = None
        self.door: AdminDoor | None = None

    async def shape(self, shape: Shape) -> str:
        if self.door is None or self._started is None or not self._started.only_scales(shape):
            await self.close()
            await self._start(shape)
        assert self.door is not None
        status = await self.door.status()
        if not status.has({"prefill": shape.prefill, "decode": shape.decode}):
            status = await self.door.scale(shape, self._say)
        return status.base_url(self.door.url)

    async def close(self) -> None:
        if self.door is not None:
            await self.door.close()
        if self._process is not None:
            self._say("stopping the cluster")
            await self._process.stop()
        self.door = self._process = self._started = None

    aclose = close  # for contextlib.aclosing

    async def _start(self, shape: Shape) -> None:
        shape = shape if shape.prefill else replace(shape, remote_prefill=self._alone)
        self._say(f"starting the cluster: {shape}, {shape.policy}, {shape.max_batch_tokens} tokens a step")
        self.num_starts += 1
        self._folder.mkdir(parents=True, exist_ok=True)
        name = f"loadgen-{secrets.token_hex(4)}"
        description = self._folder / "cluster.toml"
        description.write_text(to_toml(describe(self._described, shape, name)), encoding="utf-8")
        output = self._folder / f"cluster-{self.num_starts}.log"
        self._process = await UpProcess.start(description, name, output, self._environment, self._ray_address)
        try:
            found = await self._process.wait_ready(START_TIMEOUT_S)
        except BaseException:
            await self.close()
            raise
        self.door, self._started = AdminDoor(found.admin_url, found.admin_key, trust=found.trust), shape


def describe(described: Mapping[str, Any], shape: Shape, name: str) -> dict[str, Any]:
    """The description with the shape in it: counts, the router's policy, the workers' chunk size."""
    made = {**described, "name": name}
    for kind, count in (("prefill", shape.prefill), ("decode", shape.decode)):
        pool = dict(described.get(kind, {}))
        options = {**pool.get("options", {}), "max_batch_tokens": shape.max_batch_tokens}
        made[kind] = {**pool, "count": count, "options": options}
    router = dict(described.get("router", {}))
    options = {**router.get("options", {}), "policy": shape.policy, "remote_prefill": shape.router_remote_prefill}
    made["router"] = {"http_port": 0, **router, "options": options}
    return made


def _check_budget(status: Status, shape: Shape) -> None:
    if status.step_budgets - {shape.max_batch_tokens}:
        budgets = ", ".join(map(str, sorted(status.step_budgets)))
        raise SystemUnavailable(
            f"the running cluster computes up to {budgets} tokens a step, the experiment "
            f"wants max_batch_tokens = {shape.max_batch_tokens}; write what runs, or let the experiment start its own"
        )


def _cannot(first: Shape, shape: Shape) -> str:
    names = ("policy", "remote_prefill", "max_batch_tokens")
    differ = [name for name in names if getattr(first, name) != getattr(shape, name)]
    return (
        f"a running cluster cannot change {', '.join(differ)}; sweep one value of it, or let the experiment start a "
        'cluster of its own (backend = "cluster")'
    )
