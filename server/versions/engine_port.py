"""The part of the engine that registry and head cache use; tests put a fake in its place. Knows nothing of requests."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from typing import Protocol

from polyhead.server.engine.work.live import ActiveSet, ServedHead
from polyhead.server.engine.work.reports import SwapReport


class EnginePort(Protocol):
    """See server/engine/engine.py for what each does."""

    def activate(self, active: ActiveSet) -> Future[SwapReport]: ...
    def warm_up(self, head: ServedHead) -> None: ...
    def leased_digests(self) -> Mapping[str, int]: ...
    def drop_head(self, digest: str) -> None: ...
