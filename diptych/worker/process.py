"""Starting and stopping a worker process, in the order in which things depend on each other.

model ─► engine thread ─► transfer thread ─► gRPC ─► membership: ready      and back on the way down, after draining
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import ipaddress
import os
import socket
import time
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from functools import partial
from typing import Any
from uuid import uuid4

import grpc.aio
import numpy as np
import numpy.typing as npt
from redis.asyncio import Redis

from diptych import rpc
from diptych.background import background
from diptych.config import WorkerConfig
from diptych.engine.engine import Engine
from diptych.engine.limits import Limits
from diptych.errors import InternalError
from diptych.membership import REDIS_ERRORS, Registration, connect, is_tombstoned, tombstone
from diptych.messages import WorkerRecord, WorkerState
from diptych.model_folder import ModelFolder
from diptych.telemetry import make_logger, make_tracer
from diptych.tls import ClusterTls, cluster_tls
from diptych.worker.engine_thread import EngineThread
from diptych.worker.loading import Loaded, bind_thread, device_index, load
from diptych.worker.peers import Peers
from diptych.worker.service import BaseService, Parts
from kv_transfer.checksum import Checks
from kv_transfer.identity import Identity, identity_of
from kv_transfer.layout import KVLayout
from kv_transfer.nixl_agent import NixlAgent, ucx_environment
from kv_transfer.outcome import Arrival, Missed
from kv_transfer.publisher import IndexPublisher
from kv_transfer.transfer_thread import TransferThread

SHUTDOWN_GRACE_S = 1.0  # for open calls, when everything has been drained
CUDA_TRANSPORTS = ("cuda_copy", "cuda_ipc")  # of UCX


async def run_worker(
    config: WorkerConfig,
    make_service: Callable[[Parts], BaseService],
    started: Callable[[WorkerRecord], None],
    stop: asyncio.Event,
) -> None:
    """Run one worker until `stop` is set (then it drains) or something it cannot live without fails (then it raises).

    Raises:
        ValueError: the model folder or the configuration cannot be used.
        InternalError: the engine or the transfer thread crashed, or the cluster declared this worker dead.
    """
    os.environ.update(ucx_environment(transports_of(config), config.interfaces or _loopback_interface(config.host)))
    folder = ModelFolder(config.model)
    identity = identity_of(folder, config)
    tls = cluster_tls(config)  # what cannot be read is found before the model is loaded
    loaded = await asyncio.to_thread(load, folder, config, identity)
    failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    async with AsyncExitStack() as stack:
        server = rpc.make_server()
        redis = connect(config.redis_url)
        stack.push_async_callback(redis.aclose)
        address = f"{config.host}:{_bind(server, config, tls)}"
        parts = await _make_parts(
            stack,
            config,
            folder,
            identity,
            loaded,
            redis,
            address,
            tls,
            on_arrival=lambda arrival: service.on_arrival(arrival),
            on_missed=lambda missed: service.on_missed(missed),
        )
        service = make_service(parts)
        stack.push_async_callback(service.close)
        parts.engine.start(service.on_outcome, partial(_fail, failed, "the engine crashed"))
        stack.callback(parts.engine.stop)
        await stack.enter_async_context(
            background(parts.publisher.run(), "index", partial(_fail, failed, "the index publisher failed"))
        )
        rpc.add_to_server(service, server)
        await server.start()
        stack.push_async_callback(server.stop, SHUTDOWN_GRACE_S)

        record = _record(parts, folder, identity, loaded)
        fenced = partial(_fail, failed, "this worker was declared dead", None)
        membership = Registration(redis, config.cluster, record, config.lease_ms, fenced)
        await membership.start()
        stack.push_async_callback(membership.stop)
        started(record)
        await _run_until(_any(stop.wait(), service.worn_out.wait()), failed, parts.transfers)
        await membership.update(WorkerState.DRAINING)
        await _run_until(service.drain(config.drain_timeout_s), failed, parts.transfers)


async def _make_parts(
    stack: AsyncExitStack,
    config: WorkerConfig,
    folder: ModelFolder,
    identity: Identity,
    loaded: Loaded,
    redis: Redis,
    address: str,
    tls: ClusterTls | None,
    on_arrival: Callable[[Arrival], None],
    on_missed: Callable[[Missed], None],
) -> Parts:
    """What the service is made of; `stack` takes it apart again."""
    worker_id = f"{config.role}-{socket.gethostname()}-{uuid4().hex[:8]}"
    stack.push_async_callback(_bury, redis, config.cluster, worker_id)  # last: nothing of it can be in flight then
    transfers = _make_transfers(config, worker_id, identity, loaded, on_arrival, on_missed)
    await transfers.start()
    stack.push_async_callback(transfers.stop)
    peers = Peers(transfers, tls)
    stack.push_async_callback(peers.close)
    tracer = make_tracer(f"diptych-{config.role}", config.otlp_endpoint)
    stack.push_async_callback(asyncio.to_thread, tracer.shutdown)
    log = make_logger(worker_id)
    loaded.tell(log)
    if config.verify_checksums and config.device != "cpu":
        log.warning("no_checksums", reason="the CPU cannot read KV in the GPU's memory; transfers are not verified")
    return Parts(
        config=config,
        worker_id=worker_id,
        address=address,
        fingerprint=identity.fingerprint,
        engine=EngineThread(Engine(loaded.runner, _limits(config, folder))),
        transfers=transfers,
        peers=peers,
        publisher=IndexPublisher(redis, config.cluster, worker_id),
        is_dead=partial(_is_dead, redis, config.cluster),
        tracer=tracer,
        log=log,
    )


async def _run_until(end: Coroutine[Any, Any, object], failed: asyncio.Future[None], transfers: TransferThread) -> None:
    """Returns with `end`; raises when the worker cannot go on."""
    stopping = asyncio.ensure_future(end)
    transfers_ended = asyncio.ensure_future(transfers.ended.wait())
    waiting: set[asyncio.Future[Any]] = {stopping, transfers_ended, failed}
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        if failed.done():
            failed.result()
        if transfers_ended.done():
            raise InternalError(f"the transfer thread ended: {transfers.error!r}")
        stopping.result()
    finally:
        stopping.cancel()
        transfers_ended.cancel()


def transports_of(config: WorkerConfig) -> tuple[str, ...]:
    """The configured transports of UCX, and for a pool in a GPU's memory those that can reach it.

    Without `cuda_copy` UCX takes a device address for a host address and the process crashes; `cuda_ipc` copies between
    GPUs of one machine directly. Whoever names one of them, UCX's alias for all of them, or what to leave out, has
    chosen already.
    """
    chosen = any(name in ("all", "cuda") or name.startswith(("cuda_", "^")) for name in config.transports)
    return config.transports if config.device == "cpu" or chosen else (*config.transports, *CUDA_TRANSPORTS)


async def _any(*ends: Coroutine[Any, Any, object]) -> None:
    """Returns with the first of them."""
    tasks = [asyncio.ensure_future(end) for end in ends]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()


def _limits(config: WorkerConfig, folder: ModelFolder) -> Limits:
    return Limits(
        max_batch_tokens=config.max_batch_tokens,
        max_running=config.max_running,
        block_size=config.block_size,
        max_context=folder.spec.max_context,
        speculative_tokens=config.speculative_tokens,
        speculative_ngram_min=config.speculative_ngram_min,
        speculative_ngram_max=config.speculative_ngram_max,
    )


def _make_transfers(
    config: WorkerConfig,
    worker_id: str,
    identity: Identity,
    loaded: Loaded,
    on_arrival: Callable[[Arrival], None],
    on_missed: Callable[[Missed], None],
) -> TransferThread:
    # More blocks than the engine gives out: the last of the scratch blocks behind them is for probing connections.
    runner = loaded.runner
    num_blocks = runner.num_blocks + loaded.num_scratch_blocks
    layout = KVLayout(
        runner.pool_address,
        num_blocks,
        runner.block_bytes,
        identity.fingerprint,
        device_index(config.device),
        scratch_block=num_blocks - 1,
    )
    memory = "DRAM" if config.device == "cpu" else "VRAM"
    pool = _bytes_of(layout) if memory == "DRAM" else None

    def make_agent() -> NixlAgent:
        bind_thread(config.device)
        return NixlAgent(worker_id, layout, memory)

    checks = Checks(config.verify_checksums)
    return TransferThread(worker_id, layout, pool, make_agent, on_arrival, on_missed, checks, transports_of(config))


def _bytes_of(layout: KVLayout) -> npt.NDArray[np.uint8]:
    """The pool as bytes, [num_blocks, block_bytes]: a view of the engine's memory, for checksums."""
    raw = (ctypes.c_uint8 * layout.total_bytes).from_address(layout.address)
    return np.ctypeslib.as_array(raw).reshape(layout.num_blocks, layout.block_bytes)


def _record(parts: Parts, folder: ModelFolder, identity: Identity, loaded: Loaded) -> WorkerRecord:
    config = parts.config
    return WorkerRecord(
        worker_id=parts.worker_id,
        role=config.role,
        address=parts.address,
        state=WorkerState.READY,
        model=identity.name,
        fingerprint=parts.fingerprint,
        block_size=config.block_size,
        num_blocks=loaded.runner.num_blocks,
        block_bytes=loaded.runner.block_bytes,
        max_context=folder.spec.max_context,
        started_at=time.time(),
    )


def _bind(server: grpc.aio.Server, config: WorkerConfig, tls: ClusterTls | None) -> int:
    """The port the server listens on.

    Raises:
        OSError: it is taken.
    """
    try:
        port = rpc.listen(server, f"{config.host}:{config.port}", tls.server() if tls else None)
    except RuntimeError as error:
        raise OSError(f"cannot listen on {config.host}:{config.port}; choose another port or 0: {error}") from None
    return port


async def _bury(redis: Redis, cluster: str, worker_id: str) -> None:
    """The agent is closed: whoever waits for proof that this incarnation writes nothing more has it."""
    with contextlib.suppress(*REDIS_ERRORS):
        await tombstone(redis, cluster, worker_id)


async def _is_dead(redis: Redis, cluster: str, worker_id: str) -> bool:
    """Whether a worker is proven dead; not knowing (no Redis) is no proof."""
    try:
        return await is_tombstoned(redis, cluster, worker_id)
    except REDIS_ERRORS:
        return False


def _loopback_interface(host: str) -> str:
    try:
        return "lo" if ipaddress.ip_address(host).is_loopback else ""
    except ValueError:
        return "lo" if host == "localhost" else ""


def _fail(failed: asyncio.Future[None], what: str, error: BaseException | None) -> None:
    if not failed.done():
        failed.set_exception(InternalError(what if error is None else f"{what}: {error!r}"))
