"""Starting and stopping a router: the core, its view of the fleet, and the two doors."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import replace
from uuid import uuid4

import uvicorn
from prometheus_client import CollectorRegistry, generate_latest
from starlette.applications import Starlette

from diptych.background import background
from diptych.chat_template import ChatTemplate
from diptych.config import RouterConfig
from diptych.errors import InternalError
from diptych.membership import Change, MembershipWatch, connect
from diptych.messages import RouterRecord
from diptych.model_folder import ModelFolder
from diptych.telemetry import Logger, make_logger, make_tracer
from diptych.tls import cluster_tls
from diptych.tokenizer import Tokenizer
from kv_transfer.identity import Identity, identity_of
from router.admin_door import make_admin_app
from router.admission.admission import Admission
from router.admission.ask import AdmissionLimits
from router.admission.door import AdmissionDoor
from router.admission.metrics import AdmissionMetrics
from router.bookings import Bookings
from router.canary import Canary
from router.explain import ExplainRing
from router.fleet import Compatibility, Fleet
from router.frontend import Frontend, HealthView, ModelCard
from router.grpc_door import serve_grpc
from router.http_door import make_app
from router.index_metrics import IndexMetrics
from router.index_reader import IndexReader
from router.keys import Keys
from router.life import Router
from router.limits import Limits
from router.metrics import RequestMetrics
from router.placement.named import policy_named
from router.placement_metrics import PlacementCollector, PlacementMetrics
from router.placer import Placer
from router.prefix_index import PrefixIndex
from router.sharing.load import SharedLoad, Statements
from router.sharing.log import ReservationLog
from router.sharing.metrics import ReservationMetrics
from router.sharing.reservations import Reservations
from router.sharing.talk import Talk
from router.suspects import Suspects
from router.worker_metrics import WorkerCollector, unpublished

SHUTDOWN_GRACE_S = 5.0  # for open streams
WARM_START_S = 5.0  # for the whole index, before the doors open; 1 M blocks take about one


async def run(config: RouterConfig, started: Callable[[RouterRecord], None], stop: asyncio.Event) -> None:
    """Run one router until `stop` is set.

    Raises:
        ValueError: the model folder, the policy or the configuration cannot be used.
        OSError: a port is taken.
        InternalError: a part of the router that it cannot do without failed.
    """
    folder = ModelFolder(config.model)
    identity = identity_of(folder, config)
    model, policy = _model_card(folder, identity, config), policy_named(config.policy)
    router_id = f"router-{socket.gethostname()}-{uuid4().hex[:8]}"
    log = make_logger(router_id)

    async with AsyncExitStack() as stack:
        redis = connect(config.redis_url)
        stack.push_async_callback(redis.aclose)
        tracer = make_tracer("diptych-router", config.otlp_endpoint)
        stack.push_async_callback(asyncio.to_thread, tracer.shutdown)
        index, others = PrefixIndex(), SharedLoad()
        bookings = Bookings(others)
        keys = Keys(config.api_keys_file, log, time.monotonic)
        compatibility = Compatibility(model.fingerprint, config.block_size)
        fleet = Fleet(router_id, compatibility, config.silence_ms / 1e3, log, cluster_tls(config))
        stack.push_async_callback(fleet.close)
        watch = MembershipWatch(redis, config.cluster, config.membership_poll_ms, config.lease_ms)
        registry = CollectorRegistry()
        index_metrics = IndexMetrics(registry, model.name)
        reader = IndexReader(redis, config.cluster, index, index_metrics.observe_lag)
        canary = Canary(
            fleet,
            config.block_size,
            config.canary_interval_s,
            time.monotonic,
            config.remote_prefill != "never",
            num_open=lambda: {
                "requests": core.num_running,
                "queued": admission.num_queued,
                "queued_tokens": admission.num_queued_tokens,
                "bookings": bookings.total,
                "open_legs": fleet.num_open,
                "index_blocks": len(index),
            },
            degraded=lambda: [reason for why in without.values() if (reason := why())],
        )
        limits = _limits(identity, model, config)
        suspects = Suspects()
        ring = ExplainRing(config.explain_ring, config.policy, config.remote_prefill)
        placed = PlacementMetrics(registry, model.name)
        seed = int.from_bytes(router_id.encode()[-8:], "little")
        reservations = None
        if config.shared_reserve:
            shared = ReservationMetrics(registry, model.name)
            shared_log = ReservationLog(redis, config.cluster, router_id)
            talk = Talk(shared_log, Statements(bookings), others, index.guess, shared.others)
            reservations = Reservations(talk, shared)
        without: dict[str, Callable[[], str]] = {  # parts that need Redis: why they do without it now, or ""
            "membership": lambda: watch.degraded,
            "index": lambda: reader.degraded,
            "publishers": lambda: unpublished(fleet.reports()),
        }
        if reservations:
            without["reservations"] = lambda: reservations.degraded
        index_metrics.watch(reader, without)
        placer = Placer(limits, policy, seed, fleet, index, bookings, suspects, ring, placed, reservations)
        registry.register(PlacementCollector(placed, model.name, fleet.ready, placer.crossover, time.monotonic))
        admission = _admission(config, fleet, bookings, index, AdmissionMetrics(registry, model.name))
        fleet.on_room = admission.wake
        core = Router(router_id, limits, fleet, admission, placer, suspects, tracer, log, canary.ended)
        admin = make_admin_app(fleet, reader, ring, log)
        failures: list[BaseException] = []

        def fail(error: BaseException) -> None:
            failures.append(error)
            stop.set()

        _take(await watch.poll(), watch, fleet, reader)
        for work, name in (
            (_follow(watch, fleet, reader), "membership"),
            (reader.run(), "index"),
            (canary.run(core), "canary"),
            *([(reservations.run(), "reservations")] if reservations else []),
        ):
            await stack.enter_async_context(background(work, name, fail))
        admin_address = await stack.enter_async_context(_http_server(admin, config.admin_host, config.admin_port))
        registry.register(WorkerCollector(fleet.reports))
        if watch.workers and not await reader.caught_up(WARM_START_S):
            log.warning("index_cold", reason=reader.degraded, next="serving begins with what is known")
        await _serve(config, model, core, canary, registry, keys, admin_address, router_id, log, started, stop)
        if failures:
            raise InternalError(f"a part of the router failed: {failures[0]!r}")


async def _serve(
    config: RouterConfig,
    model: ModelCard,
    core: Router,
    canary: Canary,
    registry: CollectorRegistry,
    keys: Keys,
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
        keys=keys,
    )
    app = make_app(frontend, lambda: _with_placement(canary.view(), config), lambda: generate_latest(registry))
    tls = (config.tls_cert_file, config.tls_key_file) if config.tls_cert_file else None
    async with _http_server(app, config.host, config.http_port, tls) as http_address:
        grpc_server, grpc_port = await serve_grpc(frontend, canary.view)
        try:
            started(
                RouterRecord(
                    router_id=router_id,
                    http_address=http_address,
                    grpc_address=f"{config.host}:{grpc_port}",
                    admin_address=admin_address,
                    tls=tls is not None,
                )
            )
            await stop.wait()
        finally:
            await grpc_server.stop(SHUTDOWN_GRACE_S)


async def _follow(watch: MembershipWatch, fleet: Fleet, reader: IndexReader) -> None:
    """Let fleet and index know who comes and goes."""
    async for change in watch.changes():
        _take(change, watch, fleet, reader)


def _take(change: Change, watch: MembershipWatch, fleet: Fleet, reader: IndexReader) -> None:
    for record in (*change.joined, *change.changed):
        fleet.joined(record)
    for worker_id in change.left:
        fleet.left(worker_id)
    reader.set_workers(watch.workers)


def _with_placement(view: HealthView, config: RouterConfig) -> HealthView:
    """Also by what it places, so that who compares policies can see which one answers."""
    placing = {"policy": config.policy, "remote_prefill": config.remote_prefill}
    return replace(view, details={**view.details, **placing})


def _model_card(folder: ModelFolder, identity: Identity, config: RouterConfig) -> ModelCard:
    return ModelCard(
        name=identity.name,
        max_context=folder.spec.max_context,
        vocab_size=folder.spec.vocab_size,
        block_size=config.block_size,
        fingerprint=identity.fingerprint,
        created=int(time.time()),
        eos_token_ids=folder.spec.eos_token_ids,
        simulated=config.engine == "sim",
    )


def _limits(identity: Identity, model: ModelCard, config: RouterConfig) -> Limits:
    return Limits(
        block_size=config.block_size,
        block_bytes=identity.block_bytes,
        max_context=model.max_context,
        fingerprint=model.fingerprint,
        remote_prefill=config.remote_prefill,
        reserve_timeout_ms=config.reserve_timeout_ms,
        max_attempts=config.max_attempts,
    )


def _admission(
    config: RouterConfig, fleet: Fleet, bookings: Bookings, index: PrefixIndex, metrics: AdmissionMetrics
) -> AdmissionDoor:
    limits = AdmissionLimits.of(config)

    def believed(hashes: Sequence[bytes]) -> dict[str, int]:
        matches = index.matches(hashes, time.monotonic())
        return {worker_id: num_blocks * config.block_size for worker_id, num_blocks in matches.items()}

    return AdmissionDoor(Admission(limits, lambda: fleet.views(bookings)), limits, metrics, believed)


class _Server(uvicorn.Server):
    """Uvicorn without signal handlers: whoever runs the router stops it."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@asynccontextmanager
async def _http_server(app: Starlette, host: str, port: int, tls: tuple[str, str] | None = None) -> AsyncIterator[str]:
    """Serve HTTP, or HTTPS with the files of a certificate and its key; yields host:port.

    Streams that are open at the end get `SHUTDOWN_GRACE_S`.
    """
    listener = socket.create_server((host, port), backlog=2048)
    host, port = listener.getsockname()[:2]
    server = _Server(
        uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=int(SHUTDOWN_GRACE_S),
            ssl_certfile=tls[0] if tls else None,
            ssl_keyfile=tls[1] if tls else None,
        )
    )
    serving = asyncio.create_task(server.serve(sockets=[listener]), name="http")
    try:
        yield f"{host}:{port}"
    finally:
        server.should_exit = True
        await serving
        listener.close()
