"""Calls over grpc's synchronous API: errors translated, retried by one rule, cancelled when left. See aio_connection.py."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from typing import Any, Protocol, TypeVar

import grpc

from polyhead.client.errors import PolyheadError, from_rpc_error
from polyhead.client.transport import ChannelOwner, Deadline, Endpoint, GuardedIterator, Stubs, retry_delay

__all__ = ["Calls", "Connection", "Pick"]

T = TypeVar("T")
Pick = Callable[[Stubs], Any]  # the call to make: lambda stubs: stubs.heads.GetHead


class Calls(Protocol):
    """What a client makes its calls over: one server, or several. `timeout`: seconds."""

    def unary(self, pick: Pick, request: Any, timeout: float | None) -> Any:
        """One request, one answer."""

    def upload(self, pick: Pick, messages: Callable[[], Iterator[Any]], timeout: float | None) -> Any:
        """Many messages, one answer. `messages` is called anew for a retry; an error of its own is raised as it is."""

    def stream(self, pick: Pick, request: Any, timeout: float | None) -> Generator[Any, None, None]:
        """One request, many messages. Leaving the generator, however, cancels the call."""
        raise NotImplementedError

    def read_all(self, pick: Pick, request: Any, timeout: float | None, take: Callable[[Any], None]) -> None:
        """Hand every message of a stream to `take`."""
        with closing(self.stream(pick, request, timeout)) as messages:
            for message in messages:
                take(message)

    def close(self) -> None:
        """Close the channels; what still runs is cancelled."""


class Connection(Calls):
    """One server, as seen from one process."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint.of_one_server()
        self._owner = ChannelOwner(lambda: endpoint.open_channel(grpc))

    def unary(self, pick: Pick, request: Any, timeout: float | None) -> Any:
        return self._retried(lambda deadline: pick(self._owner.stubs())(request, **self._call_options(deadline)), timeout)

    def upload(self, pick: Pick, messages: Callable[[], Iterator[Any]], timeout: float | None) -> Any:
        return self._retried(lambda deadline: self._upload_once(pick, messages(), deadline), timeout)

    def stream(self, pick: Pick, request: Any, timeout: float | None) -> Generator[Any, None, None]:
        deadline = Deadline(timeout)
        for num_retries in itertools.count():
            has_started = False
            call = pick(self._owner.stubs())(request, **self._call_options(deadline))
            try:
                for message in call:
                    has_started = True
                    yield message
                return
            except grpc.RpcError as error:
                failure = from_rpc_error(error, self.endpoint.target)
            finally:
                call.cancel()  # a call that is only dropped would run on (grpc #43462)
            if has_started:
                raise failure
            time.sleep(retry_delay(failure, num_retries, deadline))

    def close(self) -> None:
        channel = self._owner.release()
        if channel is not None:
            channel.close()

    def _retried(self, call: Callable[[Deadline], T], timeout: float | None) -> T:
        deadline = Deadline(timeout)
        for num_retries in itertools.count():
            try:
                return call(deadline)
            except grpc.RpcError as error:
                failure: PolyheadError = from_rpc_error(error, self.endpoint.target)
            time.sleep(retry_delay(failure, num_retries, deadline))
        raise AssertionError("unreachable: count() never ends")

    def _upload_once(self, pick: Pick, messages: Iterator[Any], deadline: Deadline) -> Any:
        guarded = GuardedIterator(messages)
        try:
            return pick(self._owner.stubs())(guarded, **self._call_options(deadline))
        except grpc.RpcError:
            if guarded.failure is not None:
                raise guarded.failure from None
            raise

    def _call_options(self, deadline: Deadline) -> dict[str, Any]:
        return {"timeout": deadline.remaining(), "metadata": self.endpoint.metadata}
