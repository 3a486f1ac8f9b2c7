"""How a follower carries out tasks: what it holds is its primary's to say."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from polyhead.heads.format.errors import ResourceExhausted
from polyhead.heads.store import records
from polyhead.server.fleet.tasks import Tasks
from polyhead.v1 import fleet_pb2, heads_pb2
from tests.server.fakes import World


@pytest.fixture
def follower(world_model: Path, tmp_path: Path) -> Iterator[World]:
    opened = World.open(world_model, tmp_path / "follower", keep_versions=1)
    yield opened
    opened.close()


async def send(primary: World, follower: World, version: int) -> None:
    """A version of the policy, as a task."""

    async def pull(reference: str) -> AsyncIterator[heads_pb2.PullHeadResponse]:
        data = bytes(primary.store.read_blob(primary.store.get("policy", version).blob))
        yield heads_pb2.PullHeadResponse(chunk=heads_pb2.Chunk(offset=0, data=data))

    services: Any = SimpleNamespace(**{part: getattr(follower, part) for part in ("store", "registry", "workers", "publisher")})
    record = records.encode_version(primary.store.get("policy", version))
    await Tasks(services, pull).carry_out(fleet_pb2.FollowResponse(store_version=fleet_pb2.StoreVersion(record=record)))


async def test_a_follower_short_of_disk_refuses_a_version_and_keeps_what_it_has(
    world: World, follower: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It let older versions go by its own keep_versions: the primary went on counting on them."""
    for seed in (1, 2, 3):
        world.push("policy", world.changed(seed))
    await send(world, follower, 1)
    await send(world, follower, 2)
    monkeypatch.setattr(follower.store, "disk_space", lambda: (0, 1 << 30))
    with pytest.raises(ResourceExhausted, match="no room for this head"):
        await send(world, follower, 3)
    assert [each.version for each in follower.store.versions("policy")] == [1, 2]


async def test_weights_that_give_way_to_the_primarys_leave_memory(world: World, follower: World) -> None:
    world.push("policy", world.changed(1))
    follower.push("policy", follower.changed(2))
    with follower.registry.prepared({"policy": 1}):
        pass
    await send(world, follower, 1)
    with follower.registry.prepared({"policy": 1}):
        served = follower.cache.residency.served("policy", 1)
        assert served is not None
        assert served.live.digest == world.store.get("policy", 1).digest
