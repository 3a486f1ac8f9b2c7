"""AsyncClient: the same names and arguments as Client, and the same behaviour where asyncio could make it another one."""

from __future__ import annotations

import asyncio
import inspect
from typing import Any

import pytest

from polyhead.client import AsyncClient, Client, errors
from tests.client.fake_messages import EMBEDDING, TRUNK_NAMES
from tests.client.fake_server import FakeServer
from tests.client.fake_state import rich_error
from tests.client.test_heads import HEAD
from tests.client.test_transport import FULL


def public(kind: type) -> dict[str, Any]:
    return {name: member for name, member in vars(kind).items() if not name.startswith("_")}


def test_names_and_signatures_are_the_same() -> None:
    sync, aio = public(Client), public(AsyncClient)
    assert sync.keys() == aio.keys()
    for name, method in sync.items():
        expected, found = inspect.signature(method), inspect.signature(aio[name])
        assert expected.parameters == found.parameters, name
        assert str(found.return_annotation).replace("Async", "") == str(expected.return_annotation), name
        assert method.__doc__ == aio[name].__doc__, name
        assert inspect.iscoroutinefunction(aio[name]) == (name not in ("stream", "samples", "events", "watch")), name
    assert inspect.signature(Client.__init__) == inspect.signature(AsyncClient.__init__)


def test_generate_stream_and_lookups(server: FakeServer) -> None:
    async def story() -> None:
        async with AsyncClient(server.target) as client:
            samples = await client.generate(["x"], n=3, score=["value"])
            assert [s.sample_index for s in samples] == [0, 1, 2]
            pieces = client.stream("x")
            assert "".join([piece.text async for piece in pieces]) == "ab"
            assert pieces.sample.text == "ab"
            assert (await client.score([("p", "c")], heads=["reference"]))[0].generation == 3
            assert (await client.encode([5, 6])).shape == (2, 4)
            assert (await client.output_embedding()).shape == EMBEDDING.shape
            assert await client.tokenize("ab c") == [2, 1]
            assert await client.tokenize_batch(["ab c", "abc"]) == [[2, 1], [3]]
            assert await client.detokenize([1]) == "x"
            assert len(await client.configurations("rule_set")) == 2
            assert (await client.tokenize_rules(["no-insults"])).token_ids == {"no-insults": [7, 8]}
            assert (await client.status()).generation == 3
            assert len(await client.heads()) == 2
            assert (await client.generations())[0].number == 3
            assert await client.copy_head("policy", "reference") == 5
            assert (await client.score([("p", "c")], ood="helpful"))[0].ood.score == 2.5
            assert (await client.fit_ood("helpful", ["a", "b"])).num_prompts == 2
            assert [fit.ref for fit in await client.ood_fits()] == ["helpful@2"]
            with pytest.raises(errors.FailedPrecondition, match="policy@7 is a policy head"):
                await client.calibrate("policy", [("p", "c")])
            assert (await client.rollback()).number == 5
            await client.delete_head("policy@1")

    server.run(story())


def test_break_cancels(server: FakeServer) -> None:
    async def story() -> None:
        async with AsyncClient(server.target) as client:
            async for _ in client.samples(["x"], n=4):
                break
            for _ in range(6000):
                if server.cancelled.is_set():
                    return
                await asyncio.sleep(0.01)

    server.endless = True
    server.run(story())
    assert server.cancelled.is_set()


def test_close_cancels(server: FakeServer) -> None:
    async def story() -> None:
        async with AsyncClient(server.target) as client, client.stream("x") as pieces:
            await anext(pieces)

    server.endless = True
    server.run(story())
    assert server.cancelled.wait(60)


def test_retry_rule(server: FakeServer) -> None:
    async def story() -> None:
        async with AsyncClient(server.target) as client:
            for method, call in {"GetHead": lambda: client.head("policy"), "Generate": lambda: client.generate(["x"])}.items():
                server.failures[method] = [rich_error(FULL, "full", retry_after_s=0.01)] * 2
                await call()
                server.failures[method] = [rich_error(FULL, "full")]
                with pytest.raises(errors.ResourceExhausted):
                    await call()
                assert len(server.requests[method]) == 4

    server.run(story())


def test_push_pull_and_update(server: FakeServer) -> None:
    async def story() -> None:
        async with AsyncClient(server.target) as client:
            assert await client.push_head("policy", HEAD) == 1
            assert (await client.pull_head("policy@1")).keys() == HEAD.keys()
            assert (await client.update({"policy": HEAD})).heads == {"policy": 2}
            with pytest.raises(errors.FailedPrecondition, match="freeze the trunk"):
                await client.push_head("policy", {**HEAD, TRUNK_NAMES[0]: EMBEDDING + 1})
            server.failures["PushHead"] = [rich_error(FULL, "full", retry_after_s=0.01), rich_error(FULL, "disk full")]
            with pytest.raises(errors.ResourceExhausted, match="disk full"):
                await client.push_head("policy", HEAD)

    server.run(story())
