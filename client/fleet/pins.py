"""A connection on which every generation and scoring names one generation. The same for both APIs: it changes requests alone."""

from __future__ import annotations

from typing import Any

from polyhead.v1 import generation_pb2, scoring_pb2

__all__ = ["Pinning"]


class Pinning:
    """Stands in for a connection, and passes everything on to it."""

    def __init__(self, connection: Any, generation: int, history_id: str) -> None:
        self._connection = connection
        self._generation = generation
        self._history_id = history_id

    def unary(self, pick: Any, request: Any, timeout: float | None) -> Any:
        return self._connection.unary(pick, self._pinned(request), timeout)

    def stream(self, pick: Any, request: Any, timeout: float | None) -> Any:
        return self._connection.stream(pick, self._pinned(request), timeout)

    def _pinned(self, request: Any) -> Any:
        """A request that names a generation of its own keeps it."""
        if isinstance(request, (generation_pb2.GenerateRequest, scoring_pb2.ScoreRequest)) and not request.generation:
            request.generation, request.history_id = self._generation, self._history_id
        return request

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)
