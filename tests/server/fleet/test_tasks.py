"""How a follower carries out tasks: it deletes nothing that its primary did not name."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from polyhead.heads.format.errors import ResourceExhausted
from polyhead.heads.store import records
from polyhead.server.fleet.tasks import Tasks
from polyhead.v1 import fleet_pb2, heads_pb2
from tests.server.fakes import World


async def test_a_follower_short_of_disk_refuses_a_version_and_keeps_what_it_has(
    world: World, world_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It let older versions go by its own keep_versions: the primary went on counting on them."""
    primary, follower = world, World.open(world_model, tmp_path / "follower", keep_versions=1)

    async def pull(reference: str) -> AsyncIterator[heads_pb2.PullHeadResponse]:
        name, _, number = reference.partition("@")
        data = bytes(primary.store.read_blob(primary.store.get(name, int(number)).blob))
        yield heads_pb2.PullHeadResponse(chunk=heads_pb2.Chunk(offset=0, data=data))

    services: Any = SimpleNamespace(
        store=follower.store, registry=follower.registry, workers=follower.workers, publisher=follower.publisher
    )
    tasks = Tasks(services, pull)

    async def store(version: int) -> None:
        record = records.encode_version(primary.store.get("policy", version))
        await tasks.carry_out(fleet_pb2.FollowResponse(store_version=fleet_pb2.StoreVersion(record=record)))

    for seed in (1, 2, 3):
        primary.push("policy", primary.changed(seed))
    await store(1)
    await store(2)
    monkeypatch.setattr(follower.store, "disk_space", lambda: (0, 1 << 30))
    with pytest.raises(ResourceExhausted, match="no room for this head"):
        await store(3)
    assert [each.version for each in follower.store.versions("policy")] == [1, 2]
    follower.close()
