"""Callers who do not read: a server holds a bounded part of what they asked for, and everybody else is served."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from polyhead.client import Client
from polyhead.client.errors import InvalidArgument
from polyhead.client.local import LocalServer
from polyhead.v1 import trunk_pb2, trunk_pb2_grpc, types_pb2
from tests.e2e.support import PROMPT, WIDTH, assert_blocks_returned, serving

BUDGET = 4_000_000
LENGTH, COUNT = 1024, 24
SMALL_WINDOW = [("grpc.http2.bdp_probe", 0)]  # of the transport: 64 KiB, not megabytes


@pytest.fixture(scope="module")
def server(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    with serving(tiny_model, tmp_path_factory.mktemp("unread"), unread_bytes=BUDGET) as running:
        yield running


def texts() -> list[list[int]]:
    return [[1, *np.random.default_rng(index).integers(70, 160, LENGTH - 1).tolist()] for index in range(COUNT)]


def test_an_unread_encode_is_computed_as_it_is_read(server: LocalServer) -> None:
    """All of its states were computed at once and held for as long as the call lasted: up to an hour."""
    with Client(server.address) as client, grpc.insecure_channel(server.address, SMALL_WINDOW) as channel:
        before = client.status().counters["trunk_tokens"]
        request = trunk_pb2.EncodeRequest(sequences=[types_pb2.TokenIds(ids=ids) for ids in texts()])
        parts = trunk_pb2_grpc.TrunkServiceStub(channel).Encode(request, timeout=120)
        first = next(parts)
        client.generate([PROMPT], max_new_tokens=2, ignore_eos=True)  # came behind all of them, and does not wait for the reader
        assert client.status().counters["trunk_tokens"] - before < COUNT * LENGTH / 2
        rows = {first.sequence_index: LENGTH} | {part.sequence_index: len(part.states.data) // (4 * WIDTH) for part in parts}
        assert rows == dict.fromkeys(range(COUNT), LENGTH)
        assert_blocks_returned(client)


def test_states_that_can_never_wait_together_are_refused_at_the_door(server: LocalServer) -> None:
    with Client(server.address) as client:
        before = client.status().counters["trunk_tokens"]
        with pytest.raises(InvalidArgument, match=r"states of 32320 tokens would wait together to be read, at most 31250 can") as caught:
            client.generate([PROMPT], n=32, max_new_tokens=1000, return_states=True, delivery="groups")
        assert caught.value.field == "return_states"
        assert client.status().counters["trunk_tokens"] == before
