"""Calls to a fleet over grpc's synchronous API: each goes to the server that routing.py says, and to another one if that is away."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from typing import Any

from polyhead.client.connection import Calls, Connection, Pick
from polyhead.client.errors import FailedPrecondition, PolyheadError, Unavailable
from polyhead.client.fleet.attempts import Attempts
from polyhead.client.fleet.delivery import Delivery
from polyhead.client.fleet.routing import Place, Replicas, place_of, weight_of
from polyhead.client.results.records import Replica
from polyhead.client.transport import Deadline, Endpoint
from polyhead.client.wire import convert
from polyhead.v1 import fleet_pb2, generation_pb2

__all__ = ["FleetConnection"]

LIST_S = 2.0  # for the list of replicas; without an answer the last one stands
NOT_PRIMARY = "NOT_PRIMARY"  # the reason with which a follower refuses, before it does anything


class FleetConnection(Calls):
    """A connection for each replica."""

    def __init__(self, endpoint: Endpoint) -> None:
        given = endpoint.of_each_server()
        self._endpoint = endpoint
        self._replicas = Replicas(tuple(given))
        self._connections = {address: Connection(each) for address, each in given.items()}
        self._lock = threading.Lock()
        self._first = threading.Lock()

    def unary(self, pick: Pick, request: Any, timeout: float | None) -> Any:
        deadline = Deadline(timeout)
        match place_of(pick):
            case Place.PRIMARY:
                return self._at_primary(lambda primary: primary.unary(pick, request, deadline.remaining()))
            case Place.LOOKUP:
                return self._look_up(pick, request, deadline)
        attempts = Attempts(self._replicas, deadline)
        while True:
            self._refresh()
            with self._replicas.lent(weight_of(request), attempts.tried) as address:
                try:
                    return self._to(address).unary(pick, request, deadline.remaining())
                except PolyheadError as error:
                    wait_s = attempts.failed(address, error)
            time.sleep(wait_s)

    def upload(self, pick: Pick, messages: Callable[[], Iterator[Any]], timeout: float | None) -> Any:
        deadline = Deadline(timeout)
        return self._at_primary(lambda primary: primary.upload(pick, messages, deadline.remaining()))

    def stream(self, pick: Pick, request: Any, timeout: float | None) -> Generator[Any, None, None]:
        if place_of(pick) is not Place.ANYWHERE:
            self._find_primary()
            yield from self._to(self._replicas.primary).stream(pick, request, timeout)
        elif isinstance(request, generation_pb2.GenerateRequest):
            yield from self._generate(pick, request, timeout)
        else:
            yield from self._read(pick, request, timeout)

    def close(self) -> None:
        with self._lock:
            for each in self._connections.values():
                each.close()

    def _at_primary(self, call: Callable[[Connection], Any]) -> Any:
        """Once more where another server has become the primary."""
        self._find_primary()
        address = self._replicas.primary
        try:
            return call(self._to(address))
        except FailedPrecondition as error:
            if error.reason != NOT_PRIMARY:
                raise
            self._replicas.expire()
            self._find_primary()
            if self._replicas.primary == address:
                raise self._replicas.absent_primary(error) from None
        return call(self._to(self._replicas.primary))

    def _look_up(self, pick: Pick, request: Any, deadline: Deadline) -> Any:
        self._find_primary()
        absent: Unavailable | None = None
        for address in self._replicas.primary_first():
            try:
                return self._to(address).unary(pick, request, deadline.remaining())
            except Unavailable as error:
                self._replicas.note_down(address)
                absent = absent or error
        assert absent is not None, "nobody was asked"
        raise absent

    def _find_primary(self) -> None:
        if self._replicas.may_be_another:
            self._refresh()

    def _generate(self, pick: Pick, request: generation_pb2.GenerateRequest, timeout: float | None) -> Generator[Any, None, None]:
        """Only samples that were not delivered are asked for again."""
        deadline, delivery = Deadline(timeout), Delivery(request)
        attempts = Attempts(self._replicas, deadline)
        while True:
            self._refresh()
            with self._replicas.lent(weight_of(request), attempts.tried) as address:
                try:
                    for part in delivery.requests():
                        yield from self._part(address, pick, part, deadline, delivery)
                    if delivery.is_done:
                        return
                    raise Unavailable(f"{address} shuts down")
                except PolyheadError as error:
                    if not delivery.can_go_on:
                        raise
                    wait_s = attempts.failed(address, error)
            time.sleep(wait_s)

    def _part(self, address: str, pick: Pick, part: Any, deadline: Deadline, delivery: Delivery) -> Iterator[Any]:
        with closing(self._to(address).stream(pick, part, deadline.remaining())) as messages:
            for message in messages:
                yield from delivery.take(message)
        yield from delivery.finish()

    def _read(self, pick: Pick, request: Any, timeout: float | None) -> Generator[Any, None, None]:
        """A stream that goes on elsewhere only before its first message."""
        deadline, has_started = Deadline(timeout), False
        attempts = Attempts(self._replicas, deadline)
        while True:
            self._refresh()
            with self._replicas.lent(weight_of(request), attempts.tried) as address:
                try:
                    with closing(self._to(address).stream(pick, request, deadline.remaining())) as messages:
                        for message in messages:
                            has_started = True
                            yield message
                    return
                except PolyheadError as error:
                    if has_started:
                        raise
                    wait_s = attempts.failed(address, error)
            time.sleep(wait_s)

    def _to(self, address: str) -> Connection:
        with self._lock:
            if address not in self._connections:
                self._connections[address] = Connection(self._endpoint.at(address))
            return self._connections[address]

    def _refresh(self) -> None:
        """Calls that come together wait for the first list; later ones go by the last."""
        if not self._replicas.is_known:
            with self._first:
                self._list()
        else:
            self._list()

    def _list(self) -> None:
        if not self._replicas.is_due():
            return
        for address in self._replicas.may_be_primary():
            found: list[Replica] = []
            try:
                for message in self._to(address).stream(lambda stubs: stubs.fleet.ListReplicas, fleet_pb2.ListReplicasRequest(), LIST_S):
                    found = [convert.replica(each) for each in message.replicas]
            except PolyheadError as error:  # it follows another one, or is away
                if isinstance(error, Unavailable):
                    self._replicas.note_down(address)
                continue
            self._replicas.take(address, found)
            return
        self._replicas.is_known = True  # who served goes on serving
