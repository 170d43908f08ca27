"""Ray for one cluster: a small private one that ends with us, or an existing one of which we use a part.

Ray reads its settings from the environment when it is imported and hands them on to every process it starts, so
`private_environment` has to be applied first.
"""

from __future__ import annotations

import os
import secrets
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

OBJECT_STORE_BYTES = 80 << 20  # nothing of a request goes through it; the smallest Ray accepts is 75 MB


class RayUnavailable(Exception):
    """Ray did not start, or could not be joined; the message says why."""


def private_environment() -> dict[str, str]:
    """The environment of a private Ray: no statistics sent, loopback only, a token that is never written down."""
    return {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        # Despite its name: 0 makes every port of Ray listen on loopback, on any system (ray/_private/services.py).
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }


def shared_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment for someone else's Ray: its owner decides about tokens and addresses. Who says nothing about
    tokens means them."""
    return {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": environment.get("RAY_AUTH_MODE", "token")}


@contextmanager
def private_ray(folder: Path, num_cpus: int) -> Iterator[None]:
    """A Ray of our own.

    Args:
        folder: for its sessions. Keep it short: Ray's socket paths below it have 107 bytes in all.
        num_cpus: what it may book; 0 where actors book none, and no spare worker process is started either.

    Raises:
        RayUnavailable: it did not start.
    """
    with _ray(
        num_cpus=num_cpus,
        object_store_memory=OBJECT_STORE_BYTES,
        include_dashboard=False,
        namespace="diptych",
        _temp_dir=str(folder),
        _node_ip_address="127.0.0.1",
    ):
        yield


@contextmanager
def existing_ray(address: str, name: str) -> Iterator[None]:
    """A part of someone else's Ray, in a namespace of this run's own. On leaving, Ray ends the controller; processes
    that outlive it end by themselves (`deploy.actors`).

    Raises:
        RayUnavailable: no Ray is there, or it does not let us in.
    """
    with _ray(address=address, namespace=f"diptych-{name}-{secrets.token_hex(4)}"):
        yield


def node_addresses() -> list[str]:
    """Of every living node."""
    import ray

    return [str(node["NodeManagerAddress"]) for node in ray.nodes() if node["Alive"]]


@contextmanager
def _ray(**settings: Any) -> Iterator[None]:
    """Ray without its ways of handling SIGTERM in this process; `supervise` sees to that."""
    os.environ["RAY_DISABLE_FAILURE_SIGNAL_HANDLER"] = "1"
    import ray

    del os.environ["RAY_DISABLE_FAILURE_SIGNAL_HANDLER"]  # workers keep theirs
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        try:
            ray.init(log_to_driver=False, logging_level="ERROR", **settings)
        except (RuntimeError, ConnectionError, ValueError) as error:
            raise RayUnavailable(f"Ray cannot be used: {error}") from error
        signal.signal(signal.SIGTERM, on_sigterm)
        yield
    finally:
        ray.shutdown()
        signal.signal(signal.SIGTERM, on_sigterm)
