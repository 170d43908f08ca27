"""Ends a process of a node, and proves that it has ended: by that node's kernel, whoever asks and from wherever.

Ray's own word for a death is not proof (a broken network brings it about too), and Ray cannot end a stopped process at
once; SIGKILL can.
"""

from __future__ import annotations

import asyncio
import contextlib

import psutil
import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from deploy.status import Hosting

REMOTE_TIMEOUT_S = 30.0  # starting a process on another node included


async def prove_gone(hosting: Hosting, timeout_s: float, *, kill: bool = False) -> bool:
    """Whether this very process is known to have ended, waiting for it if need be.

    Args:
        kill: SIGKILL first.
    """
    arguments = (hosting.pid, hosting.created_at_s, timeout_s, kill)
    if hosting.node_id == ray.get_runtime_context().get_node_id():
        return await asyncio.to_thread(wait_gone, *arguments)
    there = NodeAffinitySchedulingStrategy(hosting.node_id, soft=False)
    hand = ray.remote(wait_gone).options(num_cpus=0, max_retries=0, scheduling_strategy=there)
    try:
        return bool(await asyncio.wait_for(hand.remote(*arguments), timeout_s + REMOTE_TIMEOUT_S))
    except (RayError, TimeoutError):
        return False  # the node is out of reach: nobody knows


def wait_gone(pid: int, created_at_s: float, timeout_s: float, kill: bool = False) -> bool:
    """Whether this very process (not a later one with its pid) has ended, waiting for it if need be. A zombie has."""
    try:
        process = psutil.Process(pid)
        if abs(process.create_time() - created_at_s) > 0.1 or process.status() == psutil.STATUS_ZOMBIE:
            return True
        if kill:
            process.kill()
        process.wait(timeout_s)
    except psutil.NoSuchProcess:
        return True
    except psutil.TimeoutExpired:
        with contextlib.suppress(psutil.NoSuchProcess):
            return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    return True
