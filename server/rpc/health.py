"""grpc.health.v1: whether the server, a service or a head takes requests. NOT_SERVING at first. Knows states, not their causes.

Our own servicer: the library's starts with "" = SERVING, and drops all watchers of a name when one of them leaves.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

from grpc_health.v1 import health_pb2, health_pb2_grpc

from polyhead.heads.format.errors import NotFound, ResourceExhausted
from polyhead.server.rpc.methods import SERVICES

LIVENESS = "liveness"
HEAD_PREFIX = "polyhead.v1.head/"
MAX_WATCHES = 256
HUNG_AFTER_S = 5.0

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc, unused-ignore]
    """State of each name; all methods run on the event loop."""

    def __init__(self) -> None:
        self._is_ready = False
        self._is_live = True
        self._is_draining = False
        self._heads: frozenset[str] = frozenset()
        self._known_heads: set[str] = set()  # a removed head's name stays known, as NOT_SERVING
        self._changed = asyncio.Event()
        self._num_watches = 0

    def set_ready(self, is_ready: bool) -> None:
        """Whether requests are accepted: trunk and active set are up."""
        if is_ready != self._is_ready:
            self._is_ready = is_ready
            self._notify()

    def drain(self) -> None:
        """From now on requests are refused, whatever the state of the active set."""
        self._is_draining = True
        self._notify()

    def set_live(self, is_live: bool) -> None:
        """Whether the engine makes steps. While it hangs, every name is NOT_SERVING."""
        if is_live != self._is_live:
            self._is_live = is_live
            self._notify()

    def set_heads(self, names: Iterable[str]) -> None:
        """The active set's head names."""
        if frozenset(names) != self._heads:
            self._heads = frozenset(names)
            self._known_heads |= self._heads
            self._notify()

    def status(self, service: str) -> int | None:
        """A ServingStatus, or None for an unknown name."""
        if service == LIVENESS:
            return int(_SERVING if self._is_live else _NOT_SERVING)
        head = service.removeprefix(HEAD_PREFIX)
        if head != service:
            if head not in self._known_heads:
                return None
            return int(_SERVING if self.is_up and head in self._heads else _NOT_SERVING)
        if service and service not in SERVICES:
            return None
        return int(_SERVING if self.is_up else _NOT_SERVING)

    @property
    def is_up(self) -> bool:
        """Whether the server as a whole is SERVING. May be read from any thread."""
        return self._is_ready and self._is_live and not self._is_draining

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def Check(self, request: Any, context: Any) -> Any:  # noqa: N802  gRPC's name
        status = self.status(request.service)
        if status is None:
            raise NotFound(f"no such service: {request.service[:80]!r}", field="service")
        return health_pb2.HealthCheckResponse(status=status)

    async def Watch(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        """The state now, then each other one. An unknown name yields SERVICE_UNKNOWN and stays open."""
        if self._num_watches >= MAX_WATCHES:
            raise ResourceExhausted(f"too many health watches: at most {MAX_WATCHES}", retry_after_s=10.0)
        self._num_watches += 1
        try:
            last = -1
            while True:
                changed = self._changed
                status = self.status(request.service)
                current = int(_UNKNOWN) if status is None else status
                if current != last:
                    last = current
                    yield health_pb2.HealthCheckResponse(status=current)
                else:
                    await changed.wait()
        finally:
            self._num_watches -= 1


async def watch_engine(
    health: Health, snapshot: Callable[[], Any], beat: Callable[[], None] = lambda: None, period_s: float = 0.5
) -> None:
    """Runs until cancelled: live means that the engine made a step within 5 s, or has nothing to do. `beat` is called each time."""
    while True:
        beat()
        now = snapshot()
        is_moving = now.num_open == 0 or time.monotonic() - now.last_step_at < HUNG_AFTER_S
        health.set_live(now.is_running and is_moving)
        await asyncio.sleep(period_s)
