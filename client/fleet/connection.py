"""Calls to a fleet over grpc's synchronous API: changes go to the primary, what computes to the replica with the least to do."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

from polyhead.client.connection import Connection, Pick
from polyhead.client.errors import PolyheadError, Unavailable
from polyhead.client.fleet.attempts import Attempts
from polyhead.client.fleet.delivery import Delivery
from polyhead.client.fleet.routing import Replicas, is_anywhere, weight_of
from polyhead.client.results.records import Replica
from polyhead.client.transport import Deadline, Endpoint
from polyhead.client.wire import convert
from polyhead.v1 import fleet_pb2, generation_pb2

__all__ = ["FleetConnection"]

LIST_S = 2.0  # for the list of replicas; without an answer the last one stands


class FleetConnection(Connection):
    """The primary's connection, and one for each replica."""

    def __init__(self, endpoint: Endpoint) -> None:
        super().__init__(endpoint)
        self._replicas = Replicas(endpoint.target)
        self._others: dict[str, Connection] = {}
        self._lock = threading.Lock()
        self._first = threading.Lock()

    def unary(self, pick: Pick, request: Any, timeout: float | None) -> Any:
        if not is_anywhere(pick):
            return super().unary(pick, request, timeout)
        deadline = Deadline(timeout)
        attempts = Attempts(self._replicas, deadline)
        while True:
            self._refresh()
            with self._replicas.lent(weight_of(request), attempts.tried) as address:
                try:
                    return self._to(address).unary(pick, request, deadline.remaining())
                except PolyheadError as error:
                    wait_s = attempts.failed(address, error)
            time.sleep(wait_s)

    def stream(self, pick: Pick, request: Any, timeout: float | None) -> Generator[Any, None, None]:
        if not is_anywhere(pick):
            yield from super().stream(pick, request, timeout)
        elif isinstance(request, generation_pb2.GenerateRequest):
            yield from self._generate(pick, request, timeout)
        else:
            yield from self._read(pick, request, timeout)

    def close(self) -> None:
        super().close()
        for each in self._others.values():
            each.close()

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
            if address not in self._others:
                self._others[address] = Connection(replace(self.endpoint, target=address))
            return self._others[address]

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
        found: list[Replica] = []
        try:
            for message in super().stream(lambda stubs: stubs.fleet.ListReplicas, fleet_pb2.ListReplicasRequest(), LIST_S):
                found = [convert.replica(each) for each in message.replicas]
        except PolyheadError:  # the primary is away: who served goes on serving
            self._replicas.is_known = True
        else:
            self._replicas.take(found)
