"""The control plane: it answers whatever requests, pushes and watchers do, and says how far a change is."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import grpc.aio
import pytest

from polyhead.heads.format.errors import PolyheadError
from polyhead.server.engine.work.live import ServedHead
from polyhead.server.process import workers as workers_module
from polyhead.server.process.workers import Workers
from polyhead.server.rpc.auth import Authenticator, Role, Token
from polyhead.server.rpc.errors import DeadlineExceeded
from polyhead.server.rpc.services import heads as heads_module
from polyhead.server.rpc.services.heads import MIN_BYTES_PER_S, _Chunks
from polyhead.server.rpc.uploads import Upload
from polyhead.server.versions.consent import Alone, Note, Require, Wish
from polyhead.server.versions.head_loader import to_file
from polyhead.server.versions.preconditions import Expected
from polyhead.server.versions.publisher import MAX_PUSHES
from polyhead.server.versions.watch import GenerationFeed
from polyhead.v1 import heads_pb2 as pb
from tests.server.fakes import World, heads_server, until
from tests.server.rpc.services.calls import chunk, header, push, refused

TOKENS = {name: (("authorization", f"Bearer {name}-token-of-the-tests"),) for name in ("ann", "bob")}
AUTHENTICATOR = Authenticator(tuple(Token.of(Role.TRAINER, f"{name}-token-of-the-tests", principal=name) for name in TOKENS))


@pytest.fixture
def ready(world: World) -> World:
    world.registry.bootstrap(world.policy)
    world.registry.activate({"policy": world.push("policy", world.changed(1))})
    return world


@contextlib.asynccontextmanager
async def occupied(workers: Workers) -> AsyncIterator[None]:
    """Every worker of requests and of long texts is busy until the block ends."""
    go_on = threading.Event()
    calls = [workers.run_sized(size, go_on.wait) for size in (0, 1 << 30) for _ in range(2 * workers_module.NUM_THREADS)]
    waiting = [asyncio.ensure_future(call) for call in calls]
    await asyncio.sleep(0)
    try:
        yield
    finally:
        go_on.set()
        await asyncio.gather(*waiting)


async def test_control_answers_while_every_worker_tokenises(ready: World) -> None:
    """An emergency rollback waited 29 s behind sixteen texts of 4 MB."""
    async with heads_server(ready) as (stub, _), occupied(ready.workers):
        done = await stub.RollbackHeads(pb.RollbackHeadsRequest(request_id="r"), timeout=20)
        assert (done.generation.number, done.generation.heads["policy"]) == (3, 1)
        again = await stub.ActivateHeads(pb.ActivateHeadsRequest(heads={"policy": 2}), timeout=20)
        assert again.generation.number == 4
        assert len((await stub.ListGenerations(pb.ListGenerationsRequest(), timeout=20)).generations) == 4
        listed = (await stub.ListHeads(pb.ListHeadsRequest(name="policy"), timeout=20)).heads
        assert [head.version for head in listed] == [2, 1]
        assert (await stub.GetHead(pb.GetHeadRequest(head="policy"), timeout=20)).head.version == 2
        copied = (await stub.CopyHead(pb.CopyHeadRequest(source="policy@2", target="snapshot"), timeout=20)).head
        await stub.DeleteHead(pb.DeleteHeadRequest(head=f"snapshot@{copied.version}"), timeout=20)
        watch = stub.WatchHeads(pb.WatchHeadsRequest())
        assert (await watch.read()).generation.number == 4
        watch.cancel()


@dataclass
class Absent(Alone):
    """Replicas that say nothing until `answer` is set."""

    answer: threading.Event = field(default_factory=threading.Event)

    def may_wait(self, wish: Wish) -> bool:
        return wish.require is not Require.PRIMARY

    @contextlib.contextmanager
    def asking(self, heads: Mapping[str, int], wish: Wish, note: Note) -> Iterator[None]:
        assert not self.may_wait(wish) or self.answer.wait(60)
        yield


async def test_activations_that_wait_for_replicas_hold_up_nothing(ready: World) -> None:
    """Four of heads in memory took all threads of control, which the round of the first needed: it failed, and a rollback waited for it.

    Eight of heads that had to be loaded took the threads that a replica's pull needs.
    """
    replicas = ready.registry.consent = Absent()
    ready.registry.residency.forget("policy", ready.push("policy", ready.changed(3)))
    async with heads_server(ready) as (stub, _):
        asked = [pb.ActivateHeadsRequest(heads={"policy": version}) for version in (1, 3) for _ in range(workers_module.NUM_THREADS)]
        calls = [asyncio.ensure_future(stub.ActivateHeads(each, timeout=60)) for each in asked]
        await until(lambda: len(ready.registry.changes.running()) == workers_module.NUM_WAITING_THREADS)
        assert (await stub.RollbackHeads(pb.RollbackHeadsRequest(), timeout=20)).generation.number == 3
        assert len((await stub.ListHeads(pb.ListHeadsRequest(name="policy"), timeout=20)).heads) == 3
        assert [message async for message in stub.PullHead(pb.PullHeadRequest(head="policy@2"), timeout=20)]
        replicas.answer.set()
        assert sorted([(await call).generation.number for call in calls]) == [*range(4, 4 + len(calls))]


@pytest.fixture
def slow_load(ready: World) -> Iterator[tuple[threading.Event, threading.Event]]:
    """(loading has begun, it may go on) for a version that is not in memory: policy@3."""
    version = ready.push("policy", ready.changed(3))
    ready.registry.residency.forget("policy", version)
    begun, go_on = threading.Event(), threading.Event()

    def wait(head: ServedHead) -> PolyheadError | None:
        if head.version == version:
            begun.set()
            assert go_on.wait(60)
        return None

    ready.engine.refuse = wait
    yield begun, go_on
    go_on.set()


def test_a_rollback_overtakes_an_activation_that_loads(ready: World, slow_load: tuple[threading.Event, threading.Event]) -> None:
    begun, go_on = slow_load
    done: list[Any] = []
    loading = threading.Thread(target=lambda: done.append(ready.registry.activate({"policy": 3})))
    loading.start()
    assert begun.wait(60)
    [change] = ready.registry.changes.running()
    assert (change.what, change.step) == ("activation of policy@3", "loading policy@3: 0 MiB")
    assert ready.registry.rollback().record.number == 3
    go_on.set()
    loading.join(60)
    assert (done[0].record.number, ready.registry.active.heads["policy"].version) == (4, 3)
    assert ready.registry.changes.running() == []


def test_an_activation_that_was_overtaken_keeps_its_expectation(ready: World, slow_load: tuple[threading.Event, threading.Event]) -> None:
    begun, go_on = slow_load
    failed: list[PolyheadError] = []

    def activate() -> None:
        try:
            ready.registry.activate({"policy": 3}, expected=Expected(2))
        except PolyheadError as error:
            failed.append(error)

    loading = threading.Thread(target=activate)
    loading.start()
    assert begun.wait(60)
    ready.registry.rollback()
    go_on.set()
    loading.join(60)
    assert [error.reason for error in failed] == ["GENERATION_MISMATCH"]
    assert ready.registry.active.heads["policy"].version == 1


# ---- watchers


async def test_an_announcement_is_one_call_however_many_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    """4000 watchers made an activation take 5 s: a call into the event loop for each, on its path."""
    loop, calls = asyncio.get_running_loop(), []
    feed = GenerationFeed()
    watches = [feed.numbers(0) for _ in range(50)]
    first = [asyncio.ensure_future(anext(watch)) for watch in watches]
    await asyncio.sleep(0)
    call_soon = loop.call_soon_threadsafe
    monkeypatch.setattr(loop, "call_soon_threadsafe", lambda *args: (calls.append(args), call_soon(*args)))
    feed.announce(1)
    assert len(calls) == 1
    monkeypatch.undo()
    assert await asyncio.gather(*first) == [1] * 50
    feed.announce(2)
    assert [await anext(watch) for watch in watches] == [2] * 50
    for watch in watches:
        await watch.aclose()


async def test_what_watchers_are_told_is_made_once(ready: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async with heads_server(ready) as (stub, _):
        watches = [stub.WatchHeads(pb.WatchHeadsRequest(after_generation=1)) for _ in range(10)]
        assert [(await watch.read()).generation.number for watch in watches] == [2] * 10
        read, generation = [], ready.store.generation
        monkeypatch.setattr(ready.store, "generation", lambda number: (read.append(number), generation(number))[1])
        await stub.ActivateHeads(pb.ActivateHeadsRequest(heads={"policy": 1}))
        assert [(await watch.read()).generation.heads["policy"] for watch in watches] == [1] * 10
        assert read.count(3) == 1
        for watch in watches:
            watch.cancel()


async def test_watches_are_counted_by_who_holds_them(ready: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads_module, "MAX_WATCHES", 4)
    async with heads_server(ready, authenticator=AUTHENTICATOR) as (stub, _):
        watches = [stub.WatchHeads(pb.WatchHeadsRequest(), metadata=TOKENS["ann"]) for _ in range(4)]
        for watch in watches:
            await watch.read()
        await refused(stub.WatchHeads(pb.WatchHeadsRequest(), metadata=TOKENS["ann"]).read(), "RESOURCE_EXHAUSTED")
        other = stub.WatchHeads(pb.WatchHeadsRequest(), metadata=TOKENS["bob"])
        assert (await other.read()).generation.number == 2
        for watch in [*watches, other]:
            watch.cancel()


async def test_pulls_are_counted_by_who_holds_them(ready: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each holds a file open, of the few that are kept for the store."""
    monkeypatch.setattr(heads_module, "MAX_PULLS", 2)
    piece, gate = heads_module._piece, threading.Event()
    monkeypatch.setattr(heads_module, "_piece", lambda *args: gate.wait(60) and piece(*args))
    async with heads_server(ready, authenticator=AUTHENTICATOR) as (stub, _):
        pulls = [stub.PullHead(pb.PullHeadRequest(head="policy@1"), metadata=TOKENS["ann"]) for _ in range(2)]
        for pull in pulls:
            await pull.read()
        await refused(stub.PullHead(pb.PullHeadRequest(head="policy@1"), metadata=TOKENS["ann"]).read(), "RESOURCE_EXHAUSTED")
        gate.set()
        for pull in pulls:
            while await pull.read() is not grpc.aio.EOF:
                pass
        assert [message async for message in stub.PullHead(pb.PullHeadRequest(head="policy@1"), metadata=TOKENS["ann"])]


# ---- pushes


async def test_one_trainer_cannot_take_every_push(ready: World) -> None:
    """Four pushes of one principal locked out all others."""
    data, received, all_hold_a_place = to_file(ready.changed(5)), [], asyncio.Event()

    async def stall() -> AsyncIterator[pb.PushHeadRequest]:
        yield header(data)
        yield chunk(0, data[:10])
        await asyncio.Event().wait()

    def count(form: str, num_bytes: int) -> None:
        received.append(num_bytes)
        if len(received) == MAX_PUSHES:
            all_hold_a_place.set()

    async with heads_server(ready, authenticator=AUTHENTICATOR, push_idle_s=60.0, on_received=count) as (stub, _):
        calls = [stub.PushHead(stall(), metadata=TOKENS["ann"]) for _ in range(MAX_PUSHES)]
        await asyncio.wait_for(all_hold_a_place.wait(), 60)
        await refused(stub.PushHead(push(data), metadata=TOKENS["ann"]), "RESOURCE_EXHAUSTED")
        assert (await stub.PushHead(push(data), metadata=TOKENS["bob"])).head.version == 3
        for call in calls:
            call.cancel()


async def dripped(per_message: int, every_s: float, total: int) -> int:
    """How many bytes of a push came through, by a clock that only the wait for a message moves."""
    clock = [0.0]

    async def messages() -> AsyncIterator[pb.PushHeadRequest]:
        yield pb.PushHeadRequest(header=pb.PushHeader(name="policy"))
        for offset in range(0, total, per_message):
            clock[0] += every_s
            yield chunk(offset, b"x" * per_message)

    upload = Upload(messages(), "push", 60.0, lambda: clock[0])
    await upload.header()
    return sum([len(data) async for data in _Chunks(upload).read(total)])


async def test_a_push_that_drips_is_given_up() -> None:
    """A byte every two seconds kept its place for as long as it liked."""
    with pytest.raises(DeadlineExceeded, match="30 bytes arrived in 60 s"):
        await dripped(1, 2.0, 1000)
    assert await dripped(2 * MIN_BYTES_PER_S, 2.0, 100 * MIN_BYTES_PER_S) == 100 * MIN_BYTES_PER_S


async def test_the_pushers_of_a_cancelled_call_give_their_place_back(ready: World) -> None:
    data = to_file(ready.changed(5))
    async with heads_server(ready) as (stub, _):
        for _ in range(2 * MAX_PUSHES):
            with pytest.raises(grpc.aio.AioRpcError):
                await stub.PushHead(iter([header(data), chunk(5, data[:10])]))
        assert (await stub.PushHead(push(data))).head.version == 3
