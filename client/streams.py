"""What `stream` and `samples` return: iterators that end their call when left by break, exception, close() or garbage.

(A stream that was given a name ends with `close()`, with its `with` block, or when the name goes.)
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator
from types import TracebackType
from typing import Generic, Self, TypeVar

from polyhead.client.errors import FailedPrecondition
from polyhead.client.results.results import Piece, Sample

__all__ = ["AsyncPieceStream", "AsyncStream", "PieceStream", "Stream"]

T = TypeVar("T")


class Stream(Iterator[T], Generic[T]):
    """Results as they come. Nothing is sent before the first one is asked for."""

    def __init__(self, items: Generator[T, None, None]) -> None:
        self._items = items

    def __next__(self) -> T:
        return next(self._items)

    def close(self) -> None:
        """Cancel what still runs."""
        self._items.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()


class AsyncStream(AsyncIterator[T], Generic[T]):
    """Results as they come. Nothing is sent before the first one is asked for."""

    def __init__(self, items: AsyncGenerator[T, None]) -> None:
        self._items = items

    async def __anext__(self) -> T:
        return await anext(self._items)

    async def close(self) -> None:
        """Cancel what still runs."""
        await self._items.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()


class _LastSample:
    """Takes the finished sample out of the pieces."""

    def __init__(self) -> None:
        self.found: Sample | None = None

    def keep(self, event: Piece | Sample) -> Piece | None:
        if isinstance(event, Piece):
            return event
        self.found = event
        return None

    @property
    def sample(self) -> Sample:
        """The finished sample, once the stream has ended. Raises FailedPrecondition before."""
        if self.found is None:
            raise FailedPrecondition("the stream has not ended: its sample is there after the last piece")
        return self.found


class PieceStream(Stream[Piece]):
    """Pieces of one sample; `sample` afterwards."""

    def __init__(self, events: Generator[Piece | Sample, None, None]) -> None:
        self._last = _LastSample()
        super().__init__(_pieces(events, self._last))

    @property
    def sample(self) -> Sample:
        """The finished sample, once the stream has ended. Raises FailedPrecondition before."""
        return self._last.sample


class AsyncPieceStream(AsyncStream[Piece]):
    """Pieces of one sample; `sample` afterwards."""

    def __init__(self, events: AsyncGenerator[Piece | Sample, None]) -> None:
        self._last = _LastSample()
        super().__init__(_apieces(events, self._last))

    @property
    def sample(self) -> Sample:
        """The finished sample, once the stream has ended. Raises FailedPrecondition before."""
        return self._last.sample


def _pieces(events: Generator[Piece | Sample, None, None], last: _LastSample) -> Generator[Piece, None, None]:
    try:
        for event in events:
            if (piece := last.keep(event)) is not None:
                yield piece
    finally:
        events.close()


async def _apieces(events: AsyncGenerator[Piece | Sample, None], last: _LastSample) -> AsyncGenerator[Piece, None]:
    try:
        async for event in events:
            if (piece := last.keep(event)) is not None:
                yield piece
    finally:
        await events.aclose()
