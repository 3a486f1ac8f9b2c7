"""A follower's stream, over a real connection to a primary."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from polyhead.heads.format.errors import FailedPrecondition
from polyhead.server.fleet.following import Following
from polyhead.server.ood.store import OodStore
from polyhead.server.process.card import Addresses
from polyhead.server.rewards.configuration_store import ConfigurationStore
from polyhead.server.rewards.library import Library
from polyhead.server.rpc.handlers import LateHandlers
from polyhead.server.rpc.services.fleet import FleetServicer
from polyhead.server.rpc.services.heads import HeadServicer
from polyhead.server.versions.consent import Require, Wish
from polyhead.server.versions.following import FollowState
from polyhead.v1 import fleet_pb2_grpc, heads_pb2_grpc
from tests.server.fakes import World, grpc_address, until


def services_of(world: World, following: FollowState | None, **config: object) -> Any:
    """What the fleet's code uses."""
    return SimpleNamespace(
        **{part: getattr(world, part) for part in ("store", "registry", "workers", "publisher", "trunk_id")},
        precision="float32",
        tokenizer=SimpleNamespace(sha256="ab" * 32),
        ood=SimpleNamespace(store=OodStore(world.store, 3)),
        library=Library(ConfigurationStore(world.store), {}, lambda kind, reference: ()),
        metrics=SimpleNamespace(observe_received=None),
        config=SimpleNamespace(**config),
        following=following,
    )


def rot(world: World, folder: Path) -> None:
    (folder / "blobs" / world.store.get("policy", 2).blob).write_bytes(b"rotten")


def lose(world: World, folder: Path) -> None:
    world.store.delete_version("policy", 2)


@pytest.mark.parametrize("spoil", [rot, lose])
async def test_what_a_follower_lacks_when_it_is_needed_is_sent_again(
    world: World, world_model: Path, tmp_path: Path, spoil: Callable[[World, Path], None]
) -> None:
    """It refused for good: the primary went by what it had said at the beginning."""
    primary = services_of(world, None, push_idle_s=5.0, replicas=0, advertise="")

    def add(late: LateHandlers) -> None:
        fleet_pb2_grpc.add_FleetServiceServicer_to_server(FleetServicer(primary), late)
        heads_pb2_grpc.add_HeadServiceServicer_to_server(HeadServicer(primary), late)

    world.registry.bootstrap(world.policy)
    version = world.push("policy", world.changed(1))
    follower = World.open(world_model, tmp_path / "follower")
    async with grpc_address(add) as (address, _, _):
        config = {"follow": address, "follow_token": "", "follow_ca": None, "follows_plainly": True, "advertise": "b:1"}
        state = FollowState(address)
        following = Following(services_of(follower, state, **config), Addresses("b", 1, -1), lambda: None)
        run = asyncio.ensure_future(following.run())

        def is_whole() -> bool:
            held = follower.store.versions("policy") if state.has_caught_up else []
            return any(each.version == version and follower.store.is_usable(each) for each in held)

        async def activate() -> None:
            await world.workers.run_control(lambda: world.registry.activate({"policy": version}, wish=Wish(Require.CONNECTED, 30.0)))

        await until(is_whole)
        spoil(follower, tmp_path / "follower")
        with pytest.raises(FailedPrecondition, match="a replica cannot load it"):
            await activate()
        await until(is_whole)
        await activate()
        await until(lambda: follower.registry.active.generation == 2)
        run.cancel()
        await asyncio.gather(run, return_exceptions=True)
    follower.close()
