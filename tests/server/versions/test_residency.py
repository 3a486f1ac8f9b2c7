"""The memory budget holds whatever is held, pinned or let go at the same time; and a pin ends with the work that it was for."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import MagicMock

import pytest

from polyhead.heads.format.errors import DataLoss, PolyheadError, ResourceExhausted
from polyhead.heads.format.manifest import HeadManifest
from polyhead.heads.store import failpoints
from polyhead.server.engine.work.live import LiveHead, ServedHead
from polyhead.server.rpc.auth import EVERYONE
from polyhead.server.rpc.interceptors import Call, current_call
from polyhead.server.rpc.request_context import RequestContext
from polyhead.server.rpc.services.call import CallRunner
from polyhead.server.versions.residency import Residency
from polyhead.v1.generation_pb2 import GenerateRequest
from tests.server.fakes import World

BUDGET, SIZE = 200, 100
ANY_ROOM = SimpleNamespace(check_room=lambda check_room: None)


class Module:
    """Weights that a weak reference can follow."""


def head(name: str, digest: str = "") -> ServedHead:
    return ServedHead(name, 1, cast(HeadManifest, None), LiveHead(digest or name, cast(Any, Module()), SIZE))


@pytest.fixture
def residency() -> Residency:
    return Residency(BUDGET, 1, dict, lambda digest: None)


def add_active(residency: Residency) -> None:
    residency.add(head("active"))
    residency.serve({"active"})


class TestBudget:
    def test_a_head_that_makes_way_but_is_still_held_gives_no_room(self, residency: Residency) -> None:
        """It was evicted and its bytes were taken for free: 300 of 200 in use."""
        add_active(residency)
        new = residency.add(head("new"))
        with residency.pinning() as pin, pytest.raises(ResourceExhausted) as caught, residency.room_for(SIZE, pin):
            pass
        assert residency.num_bytes <= BUDGET
        assert caught.value.retry_after_s is not None, "it fits once the holder has let go"
        del new
        with residency.pinning() as pin, residency.room_for(SIZE, pin):
            assert residency.num_bytes == BUDGET

    def test_weights_that_only_a_cycle_holds_are_freed_before_a_refusal(self, residency: Residency) -> None:
        """A build that failed leaves its weights in a cycle with the traceback: pushes were refused until Python's collector came by."""
        add_active(residency)
        failed = head("failed").live
        cast(Any, failed.module).traceback = [failed.module]
        residency.watch(failed)
        gc.disable()
        try:
            del failed
            assert residency.num_bytes == BUDGET, "nothing has looked for cycles yet"
            with residency.pinning() as pin, residency.room_for(SIZE, pin):
                assert residency.num_bytes == BUDGET
        finally:
            gc.enable()

    def test_a_held_head_makes_the_next_idle_one_go(self) -> None:
        residency = Residency(3 * SIZE, 1, dict, lambda digest: None)
        add_active(residency)
        held = residency.add(head("held"))
        residency.add(head("free"))
        with residency.pinning() as pin, residency.room_for(SIZE, pin):
            assert residency.num_bytes == 3 * SIZE
        assert residency.live("free") is None
        assert residency.live("active") is not None
        del held

    def test_a_pinned_head_is_not_let_go(self, residency: Residency) -> None:
        add_active(residency)
        residency.add(head("new"))
        with residency.pinning() as theirs:
            theirs.add({"new"})
            with residency.pinning() as pin, pytest.raises(ResourceExhausted), residency.room_for(SIZE, pin):
                pass
            residency.trim()
            assert residency.live("new") is not None
        with residency.pinning() as pin, residency.room_for(SIZE, pin):
            assert residency.live("new") is None
            assert residency.num_bytes == BUDGET

    def test_two_pins_on_one_head_end_one_by_one(self, residency: Residency) -> None:
        residency.add(head("shared"))
        with residency.pinning() as first:
            first.add({"shared"})
            with residency.pinning() as second:
                second.add({"shared"})
            assert residency._idle() == []
        assert residency._idle() == ["shared"]

    def test_a_pin_that_has_ended_takes_nothing_more(self, residency: Residency) -> None:
        """A worker goes on when its call is cancelled: what it loads then must not stay for ever."""
        residency.add(head("late"))
        with residency.pinning() as pin:
            pass
        pin.add({"late"})
        assert residency._idle() == ["late"]

    def test_a_set_gives_way_to_the_next_one(self, residency: Residency) -> None:
        add_active(residency)
        residency.add(head("new"))
        residency.serve({"new"})
        assert residency._idle() == ["active"]

    def test_one_file_loaded_twice_is_kept_once(self, residency: Residency) -> None:
        """A push and an activation of the same file at once: the set was served from a copy that counted beside the kept one."""
        first = residency.add(head("policy", "same"))
        second = residency.add(head("copy", "same"))
        assert second.live is first.live
        assert residency.num_bytes == SIZE


# ---- over a registry: who needs a head while it is on its way


@pytest.fixture
def tight(world_model: Path, tmp_path: Path) -> Iterator[World]:
    """Room for the first two files and one head more."""
    world = World.open(world_model, tmp_path / "tight")
    world.registry.bootstrap(world.policy)
    world.registry.residency.budget = world.registry.residency.num_bytes + world.head_bytes * 3 // 2
    yield world
    world.close()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as opened:
        yield opened


class Gate:
    """Holds up whoever calls `wait` until it is opened."""

    def __init__(self) -> None:
        self.reached, self._opened = threading.Event(), threading.Event()

    def wait(self) -> None:
        self.reached.set()
        assert self._opened.wait(30)

    def open(self) -> None:
        self._opened.set()


def gated(gate: Gate, function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **fields: Any) -> Any:
        gate.wait()
        return function(*args, **fields)

    return call


def assert_no_pins(world: World) -> None:
    """Nothing is under way: nothing but the active set and what requests hold has to stay."""
    assert not world.registry.residency._pins


def is_resident(world: World, reference: str) -> bool:
    return any(reference in row.references for row in world.registry.resident())


def test_an_activation_between_load_and_flip_keeps_its_heads(
    tight: World, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A push at that moment made room by letting the heads go that were about to be served."""
    residency = tight.registry.residency
    version = tight.push("policy", tight.changed(1))
    gate = Gate()
    monkeypatch.setattr(tight.store, "commit_generation", gated(gate, tight.store.commit_generation))
    activating: Future[Any] = pool.submit(tight.registry.activate, {"policy": version})
    assert gate.reached.wait(30)
    with pytest.raises(ResourceExhausted) as caught:
        tight.push("other", tight.changed(2))
    assert caught.value.retry_after_s is not None, "the active set may be another one soon"
    assert is_resident(tight, f"policy@{version}")
    assert residency.num_bytes <= residency.budget
    gate.open()
    activating.result(30)
    assert tight.registry.active.heads["policy"].live is residency.live(tight.store.get("policy", version).digest)
    assert residency.num_bytes <= residency.budget
    assert_no_pins(tight)


def test_a_push_that_was_let_in_before_a_flip_spares_the_new_set(
    tight: World, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is active was looked up before the wait for a turn to load: the set of that moment, not of the eviction's."""
    version = tight.push("policy", tight.changed(1))
    gate = Gate()
    monkeypatch.setattr(tight.cache.loader, "check", gated(gate, tight.cache.loader.check))
    pushing: Future[Any] = pool.submit(tight.push, "other", tight.changed(2))
    assert gate.reached.wait(30)
    tight.registry.activate({"policy": version})
    gate.open()
    with pytest.raises(ResourceExhausted):
        pushing.result(30)
    assert is_resident(tight, f"policy@{version}")
    assert_no_pins(tight)


def test_a_push_between_its_canary_and_its_version_keeps_its_weights(
    tight: World, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    residency = tight.registry.residency
    other = tight.push("other", tight.changed(2))
    version = tight.push("policy", tight.changed(1))
    gate = Gate()
    monkeypatch.setattr(tight.store, "add_version", gated(gate, tight.store.add_version))
    pushing: Future[int] = pool.submit(tight.push, "policy", tight.changed(1))  # the same file: its weights are in memory already
    assert gate.reached.wait(30)
    with pytest.raises(ResourceExhausted):
        tight.resolve(f"other@{other}")
    assert is_resident(tight, f"policy@{version}")
    gate.open()
    pushed = pushing.result(30)
    assert tight.resolve(f"policy@{pushed}").live is tight.resolve(f"policy@{version}").live
    assert residency.num_bytes <= residency.budget
    assert_no_pins(tight)


def test_a_head_that_a_request_has_found_stays_until_the_request_holds_it(tight: World) -> None:
    version = tight.push("policy", tight.changed(1))
    with tight.registry.resolving() as resolve:
        resolve(f"policy@{version}", "arms[0].head")
        with pytest.raises(ResourceExhausted):
            tight.push("other", tight.changed(2))
        assert is_resident(tight, f"policy@{version}")
    tight.push("other", tight.changed(2))
    assert not is_resident(tight, f"policy@{version}")


def test_a_head_let_go_while_it_was_being_found_is_loaded_again(tight: World, monkeypatch: pytest.MonkeyPatch) -> None:
    version = tight.push("policy", tight.changed(1))
    found = tight.registry.find(f"policy@{version}", tight.registry.active, "f")
    assert found is not None
    tight.registry.residency.forget("policy", version)
    monkeypatch.setattr(tight.registry, "find", lambda *_: found)
    found = None
    assert tight.resolve(f"policy@{version}").live is tight.registry.residency.live(tight.store.get("policy", version).digest)


def test_many_versions_of_one_name_in_one_request_all_stay(world: World) -> None:
    """Each was loaded and then let go for the next one, since only so many idle versions of a name are kept."""
    world.registry.bootstrap(world.policy)
    world.registry.residency.max_idle_per_name = 1
    versions = [world.push("policy", world.changed(seed)) for seed in range(4)]
    with world.registry.resolving() as resolve:
        heads = [resolve(f"policy@{version}", "f") for version in versions]
        again = [resolve(f"policy@{version}", "f") for version in versions]
        assert all(first is second for first, second in zip(heads, again, strict=True))


class TestPinsEnd:
    """Whatever goes wrong."""

    def test_after_a_canary_that_fails(self, tight: World) -> None:
        version = tight.push("policy", tight.changed(1))
        tight.registry.residency.forget("policy", version)
        tight.engine.refuse = lambda head: DataLoss("canary")
        for attempt in (lambda: tight.registry.activate({"policy": version}), lambda: tight.resolve(f"policy@{version}")):
            with pytest.raises(DataLoss):
                attempt()
        with pytest.raises(DataLoss):
            tight.push("policy", tight.changed(2))
        assert_no_pins(tight)

    def test_after_a_commit_that_fails(self, tight: World) -> None:
        version = tight.push("policy", tight.changed(1))
        failpoints.arm("before_generation_write", "ENOSPC*")
        with pytest.raises(PolyheadError):
            tight.registry.activate({"policy": version})
        failpoints.disarm()
        assert_no_pins(tight)
        tight.push("other", tight.changed(2))
        assert not is_resident(tight, f"policy@{version}")

    def test_after_a_flip_that_fails(self, tight: World, monkeypatch: pytest.MonkeyPatch) -> None:
        """The process ends then; here it does not."""
        monkeypatch.setattr("os._exit", lambda code: None)
        version = tight.push("policy", tight.changed(1))
        failpoints.arm("before_flip", "EIO")
        with pytest.raises(OSError, match="Input/output"):
            tight.registry.activate({"policy": version})
        failpoints.disarm()
        assert_no_pins(tight)

    def test_after_a_request_that_is_refused(self, tight: World) -> None:
        version = tight.push("policy", tight.changed(1))

        def check(message: object, context: RequestContext, request_id: str, counted: object) -> Any:
            context.resolve(f"policy@{version}", "f")
            raise DataLoss("no")

        async def call() -> None:
            async with runner(tight).admitted(lambda *_: ANY_ROOM, check, GenerateRequest(), 1, "r"):
                pass

        with pytest.raises(DataLoss):
            asyncio.run(call())
        assert_no_pins(tight)

    def test_after_a_call_that_is_cancelled_while_a_worker_loads(self, tight: World) -> None:
        """The worker goes on, and what it loads can make way for others at once."""
        version = tight.push("policy", tight.changed(1))
        gate, done = Gate(), threading.Event()

        def check(message: object, context: RequestContext, request_id: str, counted: object) -> Any:
            gate.wait()
            context.resolve(f"policy@{version}", "f")
            done.set()

        async def call() -> None:
            async def serve() -> None:
                async with runner(tight).admitted(lambda *_: ANY_ROOM, check, GenerateRequest(), 1, "r"):
                    pass

            task = asyncio.create_task(serve())
            await asyncio.to_thread(gate.reached.wait, 30)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            gate.open()
            assert await asyncio.to_thread(done.wait, 30)

        asyncio.run(call())
        assert_no_pins(tight)
        tight.push("other", tight.changed(2))
        assert not is_resident(tight, f"policy@{version}")


def runner(world: World) -> CallRunner:
    """With all that a call needs before it is submitted."""
    loaded: Any = MagicMock(registry=world.registry, workers=world.workers)
    loaded.config.unread_bytes, loaded.engine.state_bytes = 1, 1
    current_call.set(Call("/polyhead.v1.GenerationService/Generate", "r", EVERYONE, 9.0, cast(Any, None)))
    return CallRunner(loaded)
