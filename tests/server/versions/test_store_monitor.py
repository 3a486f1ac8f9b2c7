"""A server whose store is damaged, full or gone while it runs: health, status and metrics say the same, and the way out works."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import typer
from typer.testing import CliRunner

from polyhead.heads.format.errors import DataLoss, FailedPrecondition, ResourceExhausted
from polyhead.server import main
from polyhead.server.config import ServeConfig
from polyhead.server.metrics.metrics import EngineCollector
from polyhead.server.process.lifecycle import _show_heads
from polyhead.server.process.startup import server_facts
from polyhead.server.rpc.health import Health
from polyhead.server.rpc.services.trunk import TrunkServicer
from polyhead.server.versions.head_loader import to_file
from polyhead.server.versions.store_monitor import StoreMonitor
from tests.server.fakes import IDLE, World, heads_server
from tests.server.rpc.services.calls import push, refused


@pytest.fixture
def ready(world: World) -> World:
    world.registry.bootstrap(world.policy)
    return world


def told(world: World, health: Health) -> tuple[bool, bool, bool]:
    """What health, status and metrics say: all three are True while all is well."""
    engine = SimpleNamespace(snapshot=lambda: IDLE, active=world.engine.active, leased_names=dict)
    ood = SimpleNamespace(store=SimpleNamespace(num_bytes=0))
    services: Any = SimpleNamespace(
        config=ServeConfig(),
        following=None,
        registry=world.registry,
        store=world.store,
        engine=engine,
        ood=ood,
        trunk_bytes=1,
        model_bytes=1,
        started_at=0.0,
        attention="torch",
        cache_bytes={},
    )
    collector = EngineCollector()
    collector.connect(lambda: IDLE, list, lambda: server_facts(services))
    page = {sample.name: sample.value for family in collector.collect() for sample in family.samples}
    servicer = cast(Any, TrunkServicer.__new__(TrunkServicer))
    servicer._services = services
    return health.is_up, not servicer._status().damage, not page["polyhead_active_set_damaged"]


async def test_health_status_and_metrics_agree_that_the_store_is_gone(ready: World, caplog: pytest.LogCaptureFixture) -> None:
    """Health said SERVING, status failed, and the metrics page was an error."""
    health = Health()
    monitor = StoreMonitor(ready.store, ready.workers, lambda: _show_heads(health, ready.registry))
    await monitor.check()
    assert told(ready, health) == (True, True, True)
    shutil.move(ready.store.path, ready.store.path + ".gone")
    with caplog.at_level(logging.ERROR):
        await monitor.check()
        await monitor.check()
    assert [record.getMessage().count("folder was moved") for record in caplog.records] == [1], "once"
    assert told(ready, health) == (False, False, False)
    shutil.move(ready.store.path + ".gone", ready.store.path)
    await monitor.check()
    assert told(ready, health) == (True, True, True)


async def test_a_look_during_a_drain_does_not_call_requests_back(ready: World) -> None:
    health = Health()
    monitor = StoreMonitor(ready.store, ready.workers, lambda: _show_heads(health, ready.registry))
    await monitor.check()
    health.drain()
    await monitor.check()
    assert not health.is_up


async def test_a_corrupt_file_is_reported_while_its_version_is_served(ready: World) -> None:
    health = Health()
    monitor = StoreMonitor(ready.store, ready.workers, lambda: _show_heads(health, ready.registry))
    path = Path(ready.store.path) / "blobs" / ready.store.get("value", 1).blob
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    while ready.store.scrub.step():
        pass
    await monitor.check()
    assert told(ready, health) == (True, True, True), "memory is right"
    assert [("preference@1" in problem or "value@1" in problem) for problem in ready.registry.problems] == [True, True]
    with pytest.raises(DataLoss):
        ready.registry.activate({"value": 1})
    assert ready.registry.active.generation == 1


# ---- a full disk


async def test_a_push_that_cannot_fit_says_so_before_a_byte_is_sent(
    world_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World.open(world_model, tmp_path / "small", keep_versions=1)
    world.registry.bootstrap(world.policy)
    data = to_file(world.changed(1))
    async with heads_server(world) as (stub, _):
        await stub.PushHead(push(to_file(world.changed(2))))
        await stub.PushHead(push(to_file(world.changed(3)), labels=["best"]))
        monkeypatch.setattr(world.store, "disk_space", lambda: (100, 1000))
        error = await refused(stub.PushHead(push(data)), "RESOURCE_EXHAUSTED")
        assert f"{len(data)} bytes needed, 100 free" in (error.details() or "")
        assert "heads delete" in (error.details() or "")
        assert "google.rpc.retryinfo" not in str(error.trailing_metadata()).lower()
        await refused(stub.PushHead(push(data, delta_base="policy@1", delta_num_bytes=60, delta_sha256="ab" * 32)), "RESOURCE_EXHAUSTED")
        free = [100, 10**9]  # collecting made room
        monkeypatch.setattr(world.store, "disk_space", lambda: (free.pop(0), 10**9))
        assert (await stub.PushHead(push(data))).head.version == 4
    world.close()


def test_an_activation_on_a_full_disk_collects_but_never_what_it_activates(
    world_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World.open(world_model, tmp_path / "small", keep_versions=1)
    world.registry.bootstrap(world.policy)
    for seed in (1, 2, 3):
        world.push("policy", world.changed(seed))
    real, calls = world.store.commit_generation, []

    def commit(*arguments: Any, **fields: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 1:
            raise ResourceExhausted("the store's disk or quota is full")
        return real(*arguments, **fields)

    monkeypatch.setattr(world.store, "commit_generation", commit)
    assert world.registry.activate({"policy": 2}).record.number == 2
    assert [record.version for record in world.store.versions("policy")] == [1, 2, 4]
    world.close()


# ---- the exit status


@pytest.mark.parametrize(
    ("error", "status"),
    [(FailedPrecondition("no such model"), 2), (ResourceExhausted("no memory for another head"), 75), (MemoryError(), 75)],
)
def test_what_may_pass_by_itself_ends_a_start_with_a_status_that_is_restarted(
    monkeypatch: pytest.MonkeyPatch, error: Exception, status: int
) -> None:
    """Too little memory at a restart ended with 2, which systemd is told not to restart."""

    def start(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(main, "start", start)
    monkeypatch.setattr(main.logs, "configure", lambda *_: None)
    app = typer.Typer()
    main.register(app)
    done = CliRunner().invoke(app, [])
    assert done.exit_code == status
    assert done.output.startswith("error: ")
    unit = (Path(__file__).parents[3] / "deploy" / "polyhead.service").read_text(encoding="utf-8")
    assert "\nRestartPreventExitStatus=2\n" in unit
