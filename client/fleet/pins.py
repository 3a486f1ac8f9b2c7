"""Calls of which every generation and scoring names one generation. For both APIs: it changes requests alone."""

from __future__ import annotations

from typing import Any

from polyhead.v1 import generation_pb2, scoring_pb2

__all__ = ["PinnedCalls"]


class PinnedCalls:
    """`Calls` or `AioCalls`, whichever it is made over."""

    def __init__(self, calls: Any, generation: int, history_id: str) -> None:
        self._calls = calls
        self._generation = generation
        self._history_id = history_id

    def unary(self, pick: Any, request: Any, timeout: float | None) -> Any:
        return self._calls.unary(pick, self._pinned(request), timeout)

    def upload(self, pick: Any, messages: Any, timeout: float | None) -> Any:
        return self._calls.upload(pick, messages, timeout)

    def stream(self, pick: Any, request: Any, timeout: float | None) -> Any:
        return self._calls.stream(pick, self._pinned(request), timeout)

    def read_all(self, pick: Any, request: Any, timeout: float | None, take: Any) -> Any:
        return self._calls.read_all(pick, request, timeout, take)

    def close(self) -> Any:
        return self._calls.close()

    def _pinned(self, request: Any) -> Any:
        """A request that names a generation of its own keeps it."""
        if isinstance(request, (generation_pb2.GenerateRequest, scoring_pb2.ScoreRequest)) and not request.generation:
            request.generation, request.history_id = self._generation, self._history_id
        return request
