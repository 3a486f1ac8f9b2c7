"""Whom an activation asks, when it is refused, and how long it waits: members and rounds without streams."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from polyhead.heads.format.errors import FailedPrecondition
from polyhead.server.fleet import members as members_module
from polyhead.server.fleet.members import LOST_S, SILENT_S, Member, Members, State
from polyhead.server.fleet.rounds import Rounds
from polyhead.server.fleet.session import Order
from polyhead.server.rpc.errors import ReplicaMissing, trailing_metadata
from polyhead.server.versions.consent import Require, Wish

HEADS = {"policy": 3}


@dataclass
class FakeSession:
    """Answers each order as told; None: never."""

    answer: str | None = ""
    orders: list[str] = field(default_factory=list)

    def order(self, order: Order) -> None:
        self.orders.append(order.task.WhichOneof("task") or "")
        if self.answer is not None:
            order.end(self.answer)


class World:
    def __init__(self, num_expected: int = 0, **answers: str | None) -> None:
        self.members = Members()
        self.sessions = {self.join(name): FakeSession(answer) for name, answer in answers.items()}
        self.rounds = Rounds(self.members, self.sessions, num_expected)  # type: ignore[arg-type]

    def join(self, name: str, *, has_caught_up: bool = True) -> Member:
        return self.members.join(name, f"{name}:1", 2, has_caught_up=has_caught_up)

    def silence(self, name: str, seconds: float) -> None:
        next(each for each in self.members.listing() if each.name == name).heard_at = time.monotonic() - seconds

    def orders(self) -> dict[str, list[str]]:
        return {member.name: session.orders for member, session in self.sessions.items()}

    async def run(self, require: Require, seconds: float = 5.0) -> None:
        async with self.rounds.prepared(HEADS, Wish(require, seconds)):
            pass


async def test_every_replica_prepares_and_is_told_when_it_is_over() -> None:
    world = World(a="", b="")
    await world.run(Require.ALL)
    assert world.orders() == {"a": ["prepare", "abort"], "b": ["prepare", "abort"]}


async def test_one_that_cannot_load_it_refuses_for_all() -> None:
    world = World(a="", b="no room")
    with pytest.raises(FailedPrecondition, match="b: no room"):
        await world.run(Require.ALL)
    assert world.orders()["a"] == ["prepare", "abort"], "what it has prepared it lets go"


async def test_one_that_says_nothing_refuses_within_the_rounds_time_and_without_retries() -> None:
    world = World(a="", b=None)
    with pytest.raises(ReplicaMissing, match=r"b needs more than 0\.01 s") as refused:
        await world.run(Require.ALL, 0.01)
    assert ("grpc-retry-pushback-ms", "-1") in trailing_metadata(refused.value)


async def test_one_that_falls_silent_ends_the_round_before_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(a=None)
    monkeypatch.setattr("polyhead.server.fleet.rounds.LOOK_S", 0.01)
    run = asyncio.ensure_future(world.run(Require.ALL, 3600.0))
    await asyncio.sleep(0)
    world.silence("a", SILENT_S + 1)
    with pytest.raises(ReplicaMissing, match="a has been silent"):
        await run


@pytest.mark.parametrize(
    ("change", "is_refused"),
    [
        (lambda world: world.silence("b", SILENT_S + 1), True),  # lost: it may come back with the old generation
        (lambda world: world.silence("b", LOST_S + 1), False),  # forgotten
        (lambda world: world.members.leave(world.members.listing()[1]), False),  # it said that it goes
        (lambda world: world.members.lose(world.members.listing()[1]), True),  # its stream has ended without a word
        (lambda world: world.join("c", has_caught_up=False), False),  # it serves nothing before it has caught up
    ],
)
async def test_who_is_waited_for(change: Callable[[World], object], is_refused: bool) -> None:
    world = World(a="", b="")
    change(world)
    if is_refused:
        with pytest.raises(ReplicaMissing, match="b has been silent"):
            await world.run(Require.ALL)
        assert world.orders()["a"] == [], "nobody was asked"
    else:
        await world.run(Require.ALL)
    await world.run(Require.CONNECTED)
    assert world.orders()["a"][:2] == ["prepare", "abort"]


async def test_the_primary_alone_asks_nobody() -> None:
    world = World(num_expected=3, a=None)
    await world.run(Require.PRIMARY)
    assert world.orders() == {"a": []}


async def test_a_primary_that_was_started_anew_waits_for_the_followers_that_it_was_promised() -> None:
    world = World(num_expected=2, a="")
    with pytest.raises(ReplicaMissing, match="1 replicas are connected, of 2"):
        await world.run(Require.ALL)
    await world.run(Require.CONNECTED)


async def test_states_and_who_is_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(a="", b="", c="")
    first, second, third = world.members.listing()
    first.generation, second.error, third.has_caught_up = 3, "no room", False
    assert [each.state(3) for each in (first, second, third)] == [State.SERVING, State.BEHIND, State.SYNCING]
    report = world.members.report(3)
    assert (report.num_by_state, report.most_behind) == ({"syncing": 1, "serving": 1, "behind": 1, "lost": 0}, 1)
    monkeypatch.setattr(members_module, "SILENT_S", -1.0)
    assert first.state(3) is State.LOST
    assert await world.rounds.settled(3, Wish(Require.ALL, 0.0)) == ("a", "b", "c")


async def test_a_new_stream_of_a_name_takes_the_place_of_the_old_one() -> None:
    members = Members()
    old = members.join("a", "a:1", 2, has_caught_up=True)
    new = members.join("a", "a:2", 2, has_caught_up=True)
    assert (members.is_current(old), members.is_current(new)) == (False, True)
    members.leave(old)
    assert members.listing() == [new]
