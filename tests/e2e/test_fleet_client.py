"""Fleet: three servers behind one client. Replicas die and restart under it, generations race, and no call fails or mixes two."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from polyhead.client import AsyncFleet, Client, Fleet, Sample
from polyhead.client.errors import FailedPrecondition, InvalidArgument, Unavailable
from polyhead.client.local import LocalServer
from tests.e2e.fleets import follower_of, primary_on, ready
from tests.e2e.support import FIRST_TOKEN, PROMPT, constant_policy, eventually, fresh_salt
from tests.e2e.tiny import save_tiny_llama
from tests.ports import free_port

LONG = {"max_new_tokens": 120, "ignore_eos": True, "seed": 7}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fleet") / "model"
    save_tiny_llama(folder)
    return folder


@pytest.fixture(scope="module")
def servers(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[LocalServer]]:
    """A primary and two followers that have caught up."""
    folder, port = tmp_path_factory.mktemp("stores"), free_port()
    with contextlib.ExitStack() as running:
        first = running.enter_context(primary_on(port, model, folder / "a"))
        others = [running.enter_context(follower_of(port, model, folder / name)) for name in "bc"]
        for each in others:
            running.enter_context(ready(each))
        yield [first, *others]


def together(*calls: Callable[[], list[Sample]]) -> list[list[Sample]]:
    with ThreadPoolExecutor(len(calls)) as pool:
        return [each.result() for each in [pool.submit(call) for call in calls]]


def test_calls_are_spread_over_the_replicas(servers: list[LocalServer]) -> None:
    with Fleet(servers[0].address) as fleet, contextlib.ExitStack() as each:
        clients = [each.enter_context(Client(server.address)) for server in servers]
        before = [client.status().counters["requests"] for client in clients]
        found = together(*[lambda: fleet.generate([PROMPT], n=2, cache_salt=fresh_salt(), **LONG)] * 3)
        assert all(client.status().counters["requests"] > count for client, count in zip(clients, before, strict=True))
        assert found[0][0].token_ids == found[1][0].token_ids == found[2][0].token_ids
        assert fleet.score([(PROMPT, [80])], heads=["value"])[0].served.history_id == fleet.status().history_id


def race(fleet: Fleet, num_batches: int, calls_of_a_batch: int) -> tuple[int, int]:
    """(batches with samples of two generations, batches) while generations follow each other."""
    versions = [fleet.push_head("policy", constant_policy(fleet, FIRST_TOKEN + k), kind="policy") for k in range(2)]
    fleet.activate({"policy": versions[1]})  # each gives one token, whatever it reads; what was active draws any
    stopped, mixed = threading.Event(), 0

    def swap() -> None:
        for turn in range(100_000):
            if stopped.is_set():
                return
            fleet.activate({"policy": versions[turn % 2]})

    swapping = threading.Thread(target=swap)
    swapping.start()
    try:
        for _ in range(num_batches):
            with fleet.pinned() as pinned:
                batch = together(*[lambda pinned=pinned: pinned.generate([PROMPT], max_new_tokens=1)] * calls_of_a_batch)
            seen = {(sample.generation, sample.served.history_id, *sample.token_ids) for samples in batch for sample in samples}
            mixed += len(seen) != 1
    finally:
        stopped.set()
        swapping.join()
    return mixed, num_batches


def test_pinned_batches_are_of_one_generation_while_generations_race(servers: list[LocalServer]) -> None:
    with Fleet(servers[0].address) as fleet:
        assert race(fleet, 6, 4) == (0, 6)


@pytest.mark.long
@pytest.mark.parametrize("portion", range(14))  # of ten thousand calls
def test_ten_thousand_pinned_calls_are_of_one_generation_each_batch(servers: list[LocalServer], portion: int) -> None:
    with Fleet(servers[0].address) as fleet:
        assert race(fleet, 60, 12) == (0, 60)


def test_a_generation_that_is_named_is_the_one_that_answers_or_none(servers: list[LocalServer]) -> None:
    with Fleet(servers[0].address) as fleet, Client(servers[1].address) as follower:
        first = fleet.generations(1)[0]
        done = fleet.update({"policy": constant_policy(fleet, FIRST_TOKEN + 5)}, options={"policy": {"kind": "policy"}})
        for client in (fleet, follower):
            old = client.generate([PROMPT], max_new_tokens=1, generation=first.number, history_id=first.history_id)[0]
            assert (old.generation, old.served.history_id) == (first.number, first.history_id)
            assert client.generate([PROMPT], max_new_tokens=1, generation=done.number)[0].token_ids == [FIRST_TOKEN + 5]
        for call in (follower.generate, lambda prompts, **named: follower.score([(prompts[0], [1])], heads=["policy"], **named)):
            with pytest.raises(Unavailable, match="is not here yet") as refused:
                call([PROMPT], generation=done.number + 1)  # type: ignore[operator]
            assert refused.value.retry_after_s
            with pytest.raises(FailedPrecondition, match="another history's") as gone:
                call([PROMPT], generation=done.number, history_id="0" * 32)  # type: ignore[operator]
            assert gone.value.reason == "GENERATION_GONE"
        with pytest.raises(InvalidArgument, match="cannot follow a swap"):
            fleet.generate([PROMPT], generation=done.number, on_swap="follow")


async def test_the_awaited_fleet_does_the_same(servers: list[LocalServer]) -> None:
    async with AsyncFleet(servers[0].address) as fleet, fleet.pinned() as pinned:
        samples = await pinned.generate([PROMPT, PROMPT], n=2, max_new_tokens=2)
        assert {sample.generation for sample in samples} == {(await fleet.status()).generation}
        assert len(await fleet.tokenize("a b")) > 0


async def test_every_form_of_a_generation_comes_as_from_one_server(servers: list[LocalServer]) -> None:
    """Pieces, events, groups with a choice, states: what a Client gives of the same seed."""
    options = {"max_new_tokens": 6, "seed": 3, "ignore_eos": True, "head": "reference"}
    with Client(servers[0].address) as client, Fleet(servers[0].address) as fleet:
        for more in ({}, {"delivery": "groups"}, {"return_states": True}, {"recipe": "sparrow", "best": 1, "rules": ["no-insults"]}):
            of_one, of_all = (each.generate([PROMPT, PROMPT[:4]], n=2, **options, **more) for each in (client, fleet))
            assert [each.token_ids for each in of_all] == [each.token_ids for each in of_one]
            assert [each.sample_seed for each in of_all] == [each.sample_seed for each in of_one]
            assert [each.states is None for each in of_all] == [each.states is None for each in of_one]
        expected = client.generate([PROMPT], **options)[0]
        pieces = fleet.stream(PROMPT, **options)
        assert [token for piece in pieces for token in piece.token_ids] == expected.token_ids
        assert pieces.sample.token_ids == expected.token_ids
    async with AsyncFleet(servers[0].address) as fleet:
        events = [event async for event in fleet.events([PROMPT], n=2, **options)]
        assert sum(isinstance(event, Sample) for event in events) == 2
        assert [each.token_ids async for each in fleet.samples([PROMPT], **options)] == [expected.token_ids]


def test_a_replica_that_is_killed_costs_no_sample(model: Path, tmp_path: Path) -> None:
    """Three streams on three servers; one of these is killed in the middle. All samples come once, and are those of a single server."""
    port = free_port()
    with contextlib.ExitStack() as running:
        first = running.enter_context(primary_on(port, model, tmp_path / "a"))
        others = [running.enter_context(follower_of(port, model, tmp_path / name)) for name in "bc"]
        clients = [running.enter_context(ready(each)) for each in others]
        fleet = running.enter_context(Fleet(first.address))
        expected = [sample.token_ids for sample in fleet.generate([PROMPT, PROMPT[:5]], n=3, **LONG)]

        def kill_one() -> list[Sample]:
            eventually(lambda: clients[0].status().num_running > 0, what="a stream on the follower")
            others[0].process.kill()
            return []

        calls = [lambda: fleet.generate([PROMPT, PROMPT[:5]], n=3, cache_salt=fresh_salt(), **LONG)] * 6
        *found, _ = together(*calls, kill_one)
        assert [[sample.token_ids for sample in samples] for samples in found] == [expected] * 6


@pytest.mark.long
def test_a_rolling_restart_under_load_fails_no_call(model: Path, tmp_path: Path) -> None:
    """Each of three servers is ended as an orchestrator ends it, and started again, the primary last."""
    port, stopped, failures, num_calls = free_port(), threading.Event(), [], [0]
    with contextlib.ExitStack() as running:
        first = running.enter_context(primary_on(port, model, tmp_path / "a"))
        followers = {name: running.enter_context(follower_of(port, model, tmp_path / name)) for name in "bc"}
        for follower in followers.values():
            running.enter_context(ready(follower))
        fleet = running.enter_context(Fleet(first.address))

        def work() -> None:
            while not stopped.is_set():
                try:
                    fleet.generate([PROMPT], n=2, max_new_tokens=20, timeout=60.0)
                    num_calls[0] += 1
                except Exception as error:
                    failures.append(repr(error))

        workers = [threading.Thread(target=work) for _ in range(4)]
        for worker in workers:
            worker.start()
        try:
            for name, follower in followers.items():
                follower.process.terminate()
                follower.process.wait()
                running.enter_context(ready(running.enter_context(follower_of(port, model, tmp_path / name))))
            first.process.terminate()
            first.process.wait()
            again = running.enter_context(primary_on(port, model, tmp_path / "a"))
            running.enter_context(ready(again))
        finally:
            stopped.set()
            for worker in workers:
                worker.join()
    assert failures == []
    assert num_calls[0] > 0
