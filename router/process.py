"""Starting and stopping a router: the core, its view of the fleet, and the two doors."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from uuid import uuid4

import uvicorn
from prometheus_client import CollectorRegistry, generate_latest
from starlette.applications import Starlette

from diptych.background import background
from diptych.chat_template import ChatTemplate
from diptych.config import RouterConfig
from diptych.errors import InternalError
from diptych.membership import MembershipWatch, connect
from diptych.messages import RouterRecord
from diptych.model_folder import ModelFolder
from diptych.telemetry import Logger, make_logger, make_tracer
from diptych.tokenizer import Tokenizer
from kv_transfer.layout import fingerprint_of
from router.admin_door import make_admin_app
from router.bookings import Bookings
from router.canary import Canary
from router.explain import ExplainRing
from router.fleet import Compatibility, Fleet
from router.frontend import Frontend, ModelCard
from router.grpc_door import serve_grpc
from router.http_door import make_app
from router.index_reader import IndexReader
from router.life import Router
from router.limits import Limits
from router.metrics import RequestMetrics
from router.placement.named import policy_named
from router.placement_metrics import PlacementCollector, PlacementMetrics
from router.placer import Placer
from router.prefix_index import PrefixIndex
from router.suspects import Suspects
from router.worker_metrics import WorkerCollector

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
SHUTDOWN_GRACE_S = 5.0  # for open streams


async def run(config: RouterConfig, started: Callable[[RouterRecord], None], stop: asyncio.Event) -> None:
    """Run one router until `stop` is set.

    Raises:
        ValueError: the model folder, the policy or the configuration cannot be used.
        OSError: a port is taken.
        InternalError: a part of the router that it cannot do without failed.
    """
    folder = ModelFolder(config.model)
    model, policy = _model_card(folder, config), policy_named(config.policy)
    router_id = f"router-{socket.gethostname()}-{uuid4().hex[:8]}"
    log = make_logger(router_id)

    async with AsyncExitStack() as stack:
        redis = connect(config.redis_url)
        stack.push_async_callback(redis.aclose)
        tracer = make_tracer("diptych-router", config.otlp_endpoint)
        stack.push_async_callback(asyncio.to_thread, tracer.shutdown)
        index, bookings = PrefixIndex(), Bookings()
        fleet = Fleet(router_id, Compatibility(model.fingerprint, config.block_size), config.silence_ms / 1e3, log)
        stack.push_async_callback(fleet.close)
        watch = MembershipWatch(redis, config.cluster, config.membership_poll_ms, config.lease_ms)
        reader = IndexReader(redis, config.cluster, index)
        canary = Canary(
            fleet,
            config.block_size,
            config.canary_interval_s,
            time.monotonic,
            num_open=lambda: {
                "requests": core.num_running,
                "bookings": bookings.total,
                "open_legs": fleet.num_open,
                "index_blocks": len(index),
            },
            degraded=lambda: [reason for reason in (watch.degraded, reader.degraded) if reason],
        )
        limits = _limits(folder, model, config)
        registry, suspects = CollectorRegistry(), Suspects()
        ring = ExplainRing(config.explain_ring, config.policy, config.remote_prefill)
        placed = PlacementMetrics(registry, model.name)
        seed = int.from_bytes(router_id.encode()[-8:], "little")
        placer = Placer(limits, policy, seed, fleet, index, bookings, suspects, ring, placed)
        registry.register(PlacementCollector(placed, model.name, fleet.ready, placer.crossover, time.monotonic))
        core = Router(router_id, limits, fleet, placer, suspects, tracer, log, canary.ended)
        admin = make_admin_app(fleet, reader, ring, log)
        failures: list[BaseException] = []

        def fail(error: BaseException) -> None:
            failures.append(error)
            stop.set()

        for work, name in (
            (_follow(watch, fleet, reader), "membership"),
            (reader.run(), "index"),
            (canary.run(core), "canary"),
        ):
            await stack.enter_async_context(background(work, name, fail))
        admin_address = await stack.enter_async_context(_http_server(admin, config.admin_host, config.admin_port))
        registry.register(WorkerCollector(fleet.reports))
        await _serve(config, model, core, canary, registry, admin_address, router_id, log, started, stop)
        if failures:
            raise InternalError(f"a part of the router failed: {failures[0]!r}")


async def _serve(
    config: RouterConfig,
    model: ModelCard,
    core: Router,
    canary: Canary,
    registry: CollectorRegistry,
    admin_address: str,
    router_id: str,
    log: Logger,
    started: Callable[[RouterRecord], None],
    stop: asyncio.Event,
) -> None:
    """Open both doors, say so, and close them when told to stop."""
    frontend = Frontend(
        core=core,
        model=model,
        tokenizer=Tokenizer.from_folder(config.model),
        chat_template=ChatTemplate.from_folder(config.model),
        config=config,
        metrics=RequestMetrics(registry, model.name),
        logger=log,
    )
    app = make_app(frontend, canary.view, lambda: generate_latest(registry))
    async with _http_server(app, config.host, config.http_port) as http_address:
        grpc_server, grpc_port = await serve_grpc(frontend, canary.view)
        try:
            started(
                RouterRecord(
                    router_id=router_id,
                    http_address=http_address,
                    grpc_address=f"{config.host}:{grpc_port}",
                    admin_address=admin_address,
                )
            )
            await stop.wait()
        finally:
            await grpc_server.stop(SHUTDOWN_GRACE_S)


async def _follow(watch: MembershipWatch, fleet: Fleet, reader: IndexReader) -> None:
    """Let fleet and index know who comes and goes."""
    async for change in watch.changes():
        for record in (*change.joined, *change.changed):
            fleet.joined(record)
        for worker_id in change.left:
            fleet.left(worker_id)
        reader.set_workers(watch.workers)


def _model_card(folder: ModelFolder, config: RouterConfig) -> ModelCard:
    name = config.served_model or folder.name
    return ModelCard(
        name=name,
        max_context=folder.spec.max_context,
        vocab_size=folder.spec.vocab_size,
        block_size=config.block_size,
        fingerprint=fingerprint_of(folder, name, config.dtype, config.block_size, config.weights),
        created=int(time.time()),
        eos_token_ids=folder.spec.eos_token_ids,
    )


def _limits(folder: ModelFolder, model: ModelCard, config: RouterConfig) -> Limits:
    return Limits(
        block_size=config.block_size,
        block_bytes=folder.spec.block_bytes(config.block_size, DTYPE_BYTES[config.dtype]),
        max_context=model.max_context,
        fingerprint=model.fingerprint,
        remote_prefill=config.remote_prefill,
        reserve_timeout_ms=config.reserve_timeout_ms,
        max_queued=config.max_queued,
        max_attempts=config.max_attempts,
    )


class _Server(uvicorn.Server):
    """Uvicorn without signal handlers: whoever runs the router stops it."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@asynccontextmanager
async def _http_server(app: Starlette, host: str, port: int) -> AsyncIterator[str]:
    """Serve HTTP; yields host:port. Streams that are open at the end get `SHUTDOWN_GRACE_S`."""
    listener = socket.create_server((host, port), backlog=2048)
    host, port = listener.getsockname()[:2]
    server = _Server(
        uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=int(SHUTDOWN_GRACE_S),
        )
    )
    serving = asyncio.create_task(server.serve(sockets=[listener]), name="http")
    try:
        yield f"{host}:{port}"
    finally:
        server.should_exit = True
        await serving
        listener.close()
