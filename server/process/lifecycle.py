"""A server's life: listen, load, serve, drain, end. This file has the order of the steps, not the steps."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import grpc.aio

from polyhead.heads.format.errors import DataLoss, FailedPrecondition
from polyhead.heads.format.pauses import pause_point
from polyhead.server.config import ServeConfig
from polyhead.server.host.memory import return_garbage
from polyhead.server.metrics.metrics import Metrics
from polyhead.server.metrics.metrics_http import MetricsServer, serve_metrics
from polyhead.server.process import card
from polyhead.server.process.loading import Progress
from polyhead.server.process.services import Services
from polyhead.server.process.startup import bring_up_heads, build_services
from polyhead.server.process.watchdog import Watchdog, notify_systemd
from polyhead.server.process.workers import Workers
from polyhead.server.rpc.handlers import LateHandlers
from polyhead.server.rpc.health import Health, watch_engine
from polyhead.server.rpc.interceptors import CallInterceptor
from polyhead.server.rpc.listen import add_servicers, bind, make_server
from polyhead.server.rpc.unread import Unread
from polyhead.server.versions.following import FollowState
from polyhead.server.versions.registry import Registry
from polyhead.server.versions.store_monitor import StoreMonitor

if TYPE_CHECKING:
    from polyhead.server.fleet.following import Following

END_S = 2.0  # for handlers whose requests were ended

log = logging.getLogger(__name__)


@dataclass(slots=True)
class StopSignal:
    """SIGTERM or SIGINT asks for a graceful end, a second one for an immediate end."""

    requested: asyncio.Event = field(default_factory=asyncio.Event)
    at_once: asyncio.Event = field(default_factory=asyncio.Event)

    def __call__(self) -> None:
        (self.at_once if self.requested.is_set() else self.requested).set()

    def install(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self)


@dataclass(slots=True)
class Running:
    """What has been started so far."""

    config: ServeConfig
    health: Health
    interceptor: CallInterceptor
    handlers: LateHandlers
    server: grpc.aio.Server
    metrics: Metrics
    metrics_server: MetricsServer | None
    addresses: card.Addresses
    workers: Workers
    unread: Unread
    following: Following | None = None


async def run(config: ServeConfig, progress: Progress, announce: Callable[[Services, card.Addresses], None]) -> None:
    """Serve until a signal. PolyheadError before that if it cannot start; `announce` is called once, when it can be used."""
    stop = StopSignal()
    stop.install()
    running = await _listen(config)
    try:
        services = await _load(running, stop, progress)
        async with _background_tasks(running, services, stop) as watchdog:
            announce(services, running.addresses)
            notify_systemd("READY=1")
            await stop.requested.wait()
            notify_systemd("STOPPING=1")
            log.info("draining: %d calls in flight", running.interceptor.num_in_flight)
            await _drain(running, services, stop, watchdog)
        await asyncio.to_thread(services.store.close)
    finally:
        await running.server.stop(0)
        if running.metrics_server is not None:
            await asyncio.to_thread(running.metrics_server.close)
    running.workers.close()


async def _listen(config: ServeConfig) -> Running:
    """Take the ports first, so that a second server on the same port fails at once. Health is NOT_SERVING."""
    health, handlers, metrics = Health(), LateHandlers(), Metrics()
    metrics.serving.set_function(lambda: float(health.is_up))
    unread = Unread(config.unread_bytes, config.unread_stall_s)
    metrics.unread.set_function(lambda: unread.num_bytes)
    interceptor = CallInterceptor(config.authenticator(), config.default_deadline_s, metrics.observe_call, unread, config.follow)
    server = make_server(config, interceptor, health, handlers)
    port = bind(server, config)
    metrics_server = _serve_metrics(metrics, config)
    await server.start()
    addresses = card.Addresses(config.host, port, metrics_server.port if metrics_server else -1)
    return Running(config, health, interceptor, handlers, server, metrics, metrics_server, addresses, Workers(), unread)


def _serve_metrics(metrics: Metrics, config: ServeConfig) -> MetricsServer | None:
    if config.metrics_port < 0:
        return None
    try:
        return serve_metrics(metrics.registry, config.metrics_host, config.metrics_port)
    except OSError as error:
        raise FailedPrecondition(
            f"cannot serve metrics on {config.metrics_host}:{config.metrics_port}: {error.strerror}\n"
            "hint: choose --metrics-host and --metrics-port, or port -1 for none"
        ) from None


async def _load(running: Running, stop: StopSignal, progress: Progress) -> Services:
    """Load the model on a worker thread. A signal during the load ends the process: there is nothing to drain yet."""
    loading = asyncio.create_task(running.workers.run(_build_and_restore, running, progress))
    stopping = asyncio.create_task(stop.requested.wait())
    await asyncio.wait((loading, stopping), return_when=asyncio.FIRST_COMPLETED)
    if not loading.done():
        await running.server.stop(0)
        _exit_now()
    stopping.cancel()
    services = await loading
    add_servicers(running.handlers, services)
    return services


def _build_and_restore(running: Running, progress: Progress) -> Services:
    """On a worker thread. With a damaged active set the server stays up, NOT_SERVING, and logs how to repair it."""
    services = build_services(running.config, running.metrics, running.workers, progress)
    for found in services.store.other_damage:
        log.warning("damaged, but not active: %s; repair: stop the server, then run: %s", found.what, found.repair)
    services.engine.outbox.sink = lambda outbox: None
    services.engine.start()
    try:
        bring_up_heads(services, progress)
    except DataLoss:
        log.critical("NOT SERVING: %s", services.registry.damage)
    except BaseException:
        services.engine.stop(END_S)
        services.store.close()
        raise
    return_garbage()
    return services


@contextlib.asynccontextmanager
async def _background_tasks(running: Running, services: Services, stop: StopSignal) -> AsyncIterator[Watchdog]:
    """Run beside the calls: health checks, the store's monitor, the watchdog, and the allocation of the caches' memory."""
    from polyhead.server.rpc.stream import hand_over

    loop = asyncio.get_running_loop()
    services.engine.outbox.sink = lambda outbox: hand_over(loop, outbox)
    show = partial(_show_heads, running.health, services.registry, services.following)
    show()
    running.metrics.show_heads(services.registry.active.heads)
    watchdog = Watchdog(services.engine.snapshot, running.config.hang_limit_s)
    watchdog.start()
    monitor = StoreMonitor(services.store, running.workers, show)
    tasks = [
        asyncio.create_task(monitor.watch()),
        asyncio.create_task(monitor.scrub()),
        asyncio.create_task(watch_engine(running.health, services.engine.snapshot, watchdog.beat)),
        asyncio.create_task(_watch_heads(services.registry, show)),
        asyncio.create_task(_commit_caches(running, services, stop)),
        asyncio.create_task(running.unread.watch()),
    ]
    if running.config.follow:
        from polyhead.server.fleet.following import Following

        running.following = Following(services, running.addresses, show)
        tasks.append(asyncio.create_task(running.following.run()))
    try:
        yield watchdog
    finally:
        watchdog.stop()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _commit_caches(running: Running, services: Services, stop: StopSignal) -> None:
    if not running.config.commit_caches or running.config.device != "cpu":
        return

    def goes_on() -> bool:
        pause_point()
        return not stop.requested.is_set()

    started_at = time.monotonic()
    if await running.workers.run(services.engine.commit_caches, goes_on):
        log.info("the memory of the caches was allocated in %.1f s", time.monotonic() - started_at)
    elif not stop.requested.is_set():
        log.info("the kernel does not allocate the caches' memory ahead: each page is allocated when it is first used")


async def _watch_heads(registry: Registry, show: Callable[[], None]) -> None:
    async for _ in registry.feed.numbers(registry.active.generation):
        show()


def _show_heads(health: Health, registry: Registry, following: FollowState | None = None) -> None:
    """Ready: there is a whole active set, the store would restore it after a restart, and it is the primary's."""
    health.set_heads(registry.active.heads)
    health.set_ready(bool(registry.active.heads) and not registry.damage and (following is None or following.has_caught_up))


async def _drain(running: Running, services: Services, stop: StopSignal, watchdog: Watchdog) -> None:
    """New calls are refused, running ones finish within the grace, what is left is ended and waited for."""
    running.health.drain()
    running.interceptor.drain()
    if running.following is not None:
        await running.following.leave()
    services.registry.feed.close()
    await _first(stop.at_once.wait(), asyncio.sleep(running.config.drain_delay_s))
    await _first(stop.at_once.wait(), running.interceptor.wait_idle(running.config.drain_grace))
    services.engine.drain()
    watchdog.stop()
    await asyncio.to_thread(services.engine.stop, END_S)  # open requests end as aborted, and their handlers answer
    await running.interceptor.wait_idle(END_S)
    await running.server.stop(0)
    await running.interceptor.cancel_all(END_S)


async def _first(*waits: object) -> None:
    tasks = [asyncio.ensure_future(wait) for wait in waits]  # type: ignore[call-overload]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _exit_now() -> None:
    """Loading cannot be interrupted; the store is consistent at any moment."""
    sys.stdout.flush()
    logging.shutdown()
    os._exit(0)
