"""Text that no wire carries, and bytes in the place of text: refused by name, before anything is sent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from polyhead.client import AsyncClient, Client, Rule, errors
from tests.client.fake_server import FakeServer

BAD = "so \ud83d"  # the first half of an emoji
CALLS: dict[str, Callable[[Client], Any]] = {
    "prompts[1]": lambda c: c.generate(["x", BAD]),
    "prompts[0][0]['content']": lambda c: c.generate([[{"role": "user", "content": BAD}]]),
    "assistant_prefix": lambda c: c.generate(["x"], assistant_prefix=BAD),
    "stop[0]": lambda c: c.generate(["x"], stop=[BAD]),
    "arms[0].stop[0]": lambda c: c.generate(["x"], arms=[{"stop": [BAD]}]),
    "head": lambda c: c.generate(["x"], head=BAD),
    "score[0]": lambda c: c.generate(["x"], score=[BAD]),
    "rules[0].text": lambda c: c.generate(["x"], score=["rule"], rules=[Rule("a", BAD)]),
    "a key of recipe_constants": lambda c: c.generate(["x"], recipe="kl", recipe_constants={BAD: 1.0}),
    "items[0].completion": lambda c: c.score([("x", BAD)], heads=["value"]),
    "prompt": lambda c: c.tokenize(BAD),
    "name": lambda c: c.heads(BAD),
    "source": lambda c: c.copy_head(BAD, "reference"),
    "a key of heads": lambda c: c.activate({BAD: 1}),
    "labels[0]": lambda c: c.push("policy", {}, labels=[BAD]),
    "note": lambda c: c.update({"policy": {}}, note=BAD),
    "service": lambda c: c.wait_ready(1, BAD),
    "target": lambda c: Client(BAD),
}


@pytest.mark.parametrize("field", CALLS)
def test_a_lone_surrogate_names_its_field(client: Client, server: FakeServer, field: str) -> None:
    """protobuf raised a UnicodeEncodeError that said neither the argument nor what to do."""
    with pytest.raises(errors.InvalidArgument, match=r"lone surrogate, '\\ud83d' at character 3\nhint: ") as caught:
        CALLS[field](client)
    assert caught.value.field == field
    assert not server.requests.keys() - {"GetTrunk"}, "nothing was sent"


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda c: c.generate([b"Hi"]), r"prompts\[0\] must be a str"),
        (lambda c: c.generate([bytearray(b"Hi")]), r"prompts\[0\] must be a str"),
        (lambda c: c.generate(b"Hi"), "prompts must be a list of prompts: bytes"),
        (lambda c: c.score([("x", b"Hi")], heads=["value"]), r"items\[0\].completion must be"),
        (lambda c: c.encode([b"Hi"]), r"ids\[0\] must be a list of token ids: bytes"),
        (lambda c: c.generate(["x"], stop_token_ids=b"Hi"), "stop_token_ids has a wrong type: bytes"),
        (lambda c: c.head(7), "head has a wrong type: int"),
    ],
)
def test_bytes_are_never_run_as_ids(client: Client, server: FakeServer, call: Callable[[Client], Any], named: str) -> None:
    """generate([b"Hi"]) ran the ids 72 and 105: a sequence of numbers, too."""
    with pytest.raises(TypeError, match=named):
        call(client)
    assert not server.requests


def test_the_async_client_checks_the_same(server: FakeServer) -> None:
    async def generate() -> None:
        async with AsyncClient(server.target) as client:
            await client.generate([BAD])

    with pytest.raises(errors.InvalidArgument) as caught:
        server.run(generate())
    assert caught.value.field == "prompts[0]"
