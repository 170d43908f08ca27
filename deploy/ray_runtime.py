"""Ray for one cluster: a small private one that ends with us, or an existing one of which we use a part.

Ray reads its settings from the environment when it is imported and hands them on to every process it starts, so
`private_environment` has to be applied first.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

OBJECT_STORE_BYTES = 80 << 20  # nothing of a request goes through it; the smallest Ray accepts is 75 MB


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


def shared_environment() -> dict[str, str]:
    """The environment for someone else's Ray: its owner decides about tokens and addresses."""
    return {"RAY_USAGE_STATS_ENABLED": "0"}


@contextmanager
def private_ray(folder: Path, num_cpus: float) -> Iterator[None]:
    """A Ray of our own.

    Args:
        folder: for its sessions. Keep it short: Ray's socket paths below it have 107 bytes in all.
        num_cpus: what it may book; 0 where actors book none, and no spare worker process is started either.
    """
    ray = _import_ray()
    try:
        ray.init(
            num_cpus=int(num_cpus),
            object_store_memory=OBJECT_STORE_BYTES,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            namespace="diptych",
            _temp_dir=str(folder),
            _node_ip_address="127.0.0.1",
        )
        yield
    finally:
        ray.shutdown()


@contextmanager
def existing_ray(address: str) -> Iterator[None]:
    """A part of someone else's Ray. On leaving, Ray ends the actors this process started, and nothing else.

    Raises:
        ConnectionError: no Ray is there.
    """
    ray = _import_ray()
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", namespace=f"diptych-{os.getpid()}")
        yield
    finally:
        ray.shutdown()


def num_nodes() -> int:
    import ray

    return sum(node["Alive"] for node in ray.nodes())


def _import_ray() -> ModuleType:
    """Without its crash handler in this process, which would turn SIGTERM into a stack trace; workers have theirs."""
    os.environ["RAY_DISABLE_FAILURE_SIGNAL_HANDLER"] = "1"
    import ray

    del os.environ["RAY_DISABLE_FAILURE_SIGNAL_HANDLER"]
    return ray
