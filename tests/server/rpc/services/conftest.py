"""HeadService over a real connection, on a store with the first heads."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.server.fakes import World, heads_server
from tests.server.rpc.services.calls import Stub


@pytest.fixture
async def stub(world: World) -> AsyncIterator[Stub]:
    world.registry.bootstrap(world.policy)
    async with heads_server(world, push_idle_s=60.0) as (opened, _):
        yield opened
