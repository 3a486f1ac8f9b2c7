"""Pieces of several samples in one stream, and each sample when it is finished: both clients alike."""

from __future__ import annotations

from polyhead.client import AsyncClient, Client, Piece, Sample
from polyhead.v1 import generation_pb2
from tests.client.fake_server import FakeServer


def test_pieces_and_samples_come_as_the_server_sends_them(client: Client, server: FakeServer) -> None:
    with client.events([[1, 2]], n=2) as stream:
        events = list(stream)
    assert [type(event) for event in events] == [Piece, Piece, Sample, Sample]
    assert "".join(event.text for event in events[:2] if isinstance(event, Piece)) == "ab"
    assert server.requests["Generate"][0].delivery == generation_pb2.DELIVERY_TOKENS


async def test_the_async_client_does_the_same(server: FakeServer) -> None:
    async with AsyncClient(server.target, timeout=20) as client:
        events = [event async for event in client.events([[1, 2]], n=2)]
    assert [type(event) for event in events] == [Piece, Piece, Sample, Sample]


def test_another_delivery_may_be_asked_for(client: Client, server: FakeServer) -> None:
    assert [type(event) for event in client.events([[1, 2]], n=2, delivery="samples")] == [Sample, Sample]
    assert server.requests["Generate"][0].delivery == generation_pb2.DELIVERY_SAMPLES
